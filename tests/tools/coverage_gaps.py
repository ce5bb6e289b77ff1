"""Coverage over both halves and the processes that they start, compared with the list in docs/coverage.md."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests import ROOT

LIST = ROOT / "docs/coverage.md"


def variables(folder: str) -> dict[str, str]:
    """Return the variables with which every process writes a data file of its own into the folder."""
    return {"COVERAGE_FILE": f"{folder}/.coverage"}


def runner(environment: Mapping[str, str]) -> list[str]:
    return ["-m", "coverage", "run"] if "COVERAGE_FILE" in environment else []


def is_enough(folder: str) -> bool:
    """Print the uncovered lines; return whether the total reaches the minimum and every gap is listed."""
    report = Path(folder, "coverage.json")
    coverage("combine", "--quiet", folder)
    reaches_minimum = coverage("report") == 0
    coverage("json", "--quiet", "-o", str(report))
    errors = [*compare(json.loads(report.read_text()), LIST.read_text())]
    print("", *errors, sep="\n", flush=True)
    return reaches_minimum and not errors


def coverage(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "coverage", *arguments], cwd=ROOT).returncode


def compare(report: dict[str, Any], text: str) -> Iterator[str]:
    """Yield an error for each gap that the list lacks, and for each listed function that does not exist.

    `report` is coverage's JSON. A listed function may be covered: that can depend on Python and on timing.
    """
    listed = set(re.findall(r"^\| `(\S+)` \| `(\S+)` \|", text, re.MULTILINE))
    functions = {
        (path, name or "module"): bool(function["missing_lines"] or function["missing_branches"])
        for path, file in report["files"].items()
        for name, function in file["functions"].items()
    }
    for path, name in sorted({function for function, has_gap in functions.items() if has_gap} - listed):
        yield f"{path}: no test covers all of {name}. Test it, or add it to docs/{LIST.name} with the reason."
    for path, name in sorted(listed - set(functions)):
        yield f"docs/{LIST.name} lists {name} of {path}, which does not exist."
