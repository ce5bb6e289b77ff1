"""CPU and memory of processes, read from /proc: of a process tree, and of a database's sessions."""

import os
from collections import defaultdict
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
PROCESSORS = os.cpu_count() or 1


def tree(root: int) -> list[int]:
    """Return the process and all its descendants."""
    children = defaultdict(list)
    for path in PROC.glob("[0-9]*/stat"):
        if fields := _stat(path):
            children[int(fields[1])].append(int(path.parent.name))
    found = [root]
    for pid in found:
        found.extend(children[pid])
    return found


def cpu(pids: list[int]) -> float:
    """Return the user and system time of these processes so far, in seconds."""
    stats = (_stat(PROC / str(pid) / "stat") for pid in pids)
    return sum((int(fields[11]) + int(fields[12])) / TICKS for fields in stats if fields)


def sessions(postmaster: int, database: str) -> list[int]:
    """Return the server's processes that serve a session of this database."""
    return [pid for pid in tree(postmaster) if f" {database} " in _title(pid)]


def ended(pid: int) -> float:
    """Return the CPU seconds of those children of a process that have exited."""
    fields = _stat(PROC / str(pid) / "stat")
    return (int(fields[13]) + int(fields[14])) / TICKS if fields else 0.0


def ended_here() -> float:
    return ended(os.getpid())


def memory(root: int, workers: int) -> float:
    """Return the mean MiB of the `workers` largest descendants; shared memory is divided among them (PSS)."""
    sizes = sorted((_pss(pid) for pid in tree(root)[1:]), reverse=True)[:workers]
    return sum(sizes) / len(sizes) / 1024 if sizes else 0.0


def busy() -> float:
    """Return the seconds for which all processors together have been busy since the machine started."""
    fields = [int(field) for field in (PROC / "stat").read_text().split("\n")[0].split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:8])) / TICKS  # user, nice, system; irq, softirq, steal


def _stat(path: Path) -> list[str]:
    """Return the fields of a stat file from the third on, or [] if the process has exited.

    The second field, the name, may contain blanks.
    """
    try:
        return path.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _title(pid: int) -> str:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _pss(pid: int) -> int:
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
