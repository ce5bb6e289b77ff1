"""A report that grows while the bench runs."""

from pathlib import Path


class Report:
    """Prints each part at once, and saves all of them in one file."""

    def __init__(self, title: str, origin: str) -> None:
        self.parts = [f"# {title}", f"{origin}; docs/performance.md explains it."]

    def write(self, part: str) -> None:
        print(f"\n{part}", flush=True)
        self.parts.append(part)

    def save(self, file: Path) -> None:
        file.write_text("\n\n".join(self.parts) + "\n")
