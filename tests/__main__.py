"""Run everything: `python -m tests [--full] [pytest arguments]`.

First the whole suite on PostgreSQL (DATABASE_URL, or a throw-away server), then its portable part on
SQLite. The exit code is 0 if both passed.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
NOTHING_COLLECTED = 5  # pytest's exit code
PATIENCE = 15  # seconds that pytest gets to clean up


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests",
        allow_abbrev=False,
        description="Run the suite on PostgreSQL, then its portable part on SQLite.",
        epilog="All other arguments go to pytest, in both halves.",
    )
    parser.add_argument("--full", action="store_true", help="run the long tests too")
    options, chosen = parser.parse_known_args(arguments)
    first = run_first_half([*(["--full"] if options.full else []), *chosen])
    second = run_second_half(chosen)
    return 0 if first and second else 1


def run_first_half(arguments: list[str]) -> bool:
    own = os.environ.get("DATABASE_URL", "").strip()
    where = "the database of DATABASE_URL" if own else "a throw-away PostgreSQL"
    return run_half(f"First half, the whole suite on {where}", arguments, os.environ) == 0


def run_second_half(arguments: list[str]) -> bool:
    """Run the portable part. A choice of the user's may leave nothing of it, and that is no failure."""
    with tempfile.TemporaryDirectory(prefix="quotasite-sqlite-") as folder:
        code = run_half(
            "Second half, the portable part on SQLite",
            ["-m", "not postgres and not full and not once", *arguments],
            {**os.environ, "DATABASE_URL": f"sqlite:///{folder}/quotasite.sqlite3"},
        )
    return code == 0 or (code == NOTHING_COLLECTED and is_choice(arguments))


def is_choice(arguments: list[str]) -> bool:
    """Tell whether pytest's arguments pick some of the tests: by path, or with -k or -m."""
    return any(argument.startswith(("-k", "-m")) or argument[:1] != "-" for argument in arguments)


def run_half(title: str, arguments: list[str], environment: Mapping[str, str]) -> int:
    print(f"\n{title}:", flush=True)
    began = time.monotonic()
    code = run_pytest(arguments, environment)
    outcome = {0: "passed", NOTHING_COLLECTED: "nothing to run"}.get(code, "FAILED")
    print(f"{title}: {outcome} in {time.monotonic() - began:.1f} s.", flush=True)
    return code


def run_pytest(arguments: list[str], environment: Mapping[str, str]) -> int:
    """Return the exit code of pytest, run as a process of its own that never outlives this one's end."""
    child = subprocess.Popen([sys.executable, "-m", "pytest", *arguments], cwd=ROOT, env=environment)
    try:
        return child.wait()
    except SystemExit:  # from a SIGTERM, which only we got; the terminal gives a Ctrl-C to both
        child.send_signal(signal.SIGINT)
        raise
    finally:
        reap(child)


def reap(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
