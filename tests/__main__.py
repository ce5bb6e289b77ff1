"""Run everything: `python -m tests [--full] [--coverage] [pytest arguments]`.

The first half is every test that uses our database, on PostgreSQL (TEST_DATABASE_URL, or a throw-away
server). The second runs concurrently and is printed afterwards: the portable tests again, on SQLite, and
those that have a database of their own or none (`once`). Together they are the whole suite. The exit code is
0 if both passed, and with `--coverage` if they also cover enough.
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
from typing import IO

from tests import ROOT
from tests.tools import coverage_gaps

NOTHING_COLLECTED = 5  # pytest's exit code
CLEANUP_SECONDS = 15  # seconds that pytest gets to clean up
INTERRUPT_SECONDS = 3  # seconds that it gets to notice a Ctrl-C of its own
BEGAN = time.monotonic()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests",
        allow_abbrev=False,
        description="Run the suite on PostgreSQL, and its portable part on SQLite.",
        epilog="All other arguments go to pytest, in both halves.",
    )
    parser.add_argument("--full", action="store_true", help="run the long tests too")
    parser.add_argument("--coverage", action="store_true", help="measure what the tests cover")
    options, chosen = parser.parse_known_args(arguments)
    if options.coverage and is_choice(chosen):
        parser.error("--coverage measures the whole suite: do not choose tests")
    arguments = [*(["--full"] if options.full else []), *chosen]
    with tempfile.TemporaryDirectory(prefix="quotasite-sqlite-") as folder, open_output(folder) as output:
        environment = {**os.environ, **(coverage_gaps.variables(folder) if options.coverage else {})}
        sqlite = {**environment, "TEST_DATABASE_URL": f"sqlite:///{folder}/quotasite.sqlite3"}
        second = start(["--half=second", *arguments], sqlite, output)
        try:
            first_code = run_first_half(["--half=first", *arguments], environment)
            second_code = second.wait()
        finally:
            interrupt(second)
        output.seek(0)
        print(output.read())
        report(
            "Second half, the portable tests on SQLite and those that do not use our database", second_code
        )
        if not is_passed({first_code, second_code}, chosen):
            return 1
        return 0 if not options.coverage or coverage_gaps.is_enough(folder) else 1


def is_passed(codes: set[int], chosen: list[str]) -> bool:
    """Return whether the run passed: one half may be empty if the arguments choose tests."""
    return 0 in codes and codes <= ({0, NOTHING_COLLECTED} if is_choice(chosen) else {0})


def open_output(folder: str) -> IO[str]:
    """Open a file for the output of the second half, while the first has the terminal."""
    return (Path(folder) / "output").open("w+")


def run_first_half(arguments: list[str], environment: Mapping[str, str]) -> int:
    own = environment.get("TEST_DATABASE_URL", "").strip()
    where = "the server of TEST_DATABASE_URL" if own else "a throw-away PostgreSQL"
    title = f"First half, every test that uses our database, on {where}"
    print(f"\n{title}:", flush=True)
    child = start(arguments, environment)
    try:
        code = child.wait()
    finally:
        interrupt(child)
    report(title, code)
    return code


def is_choice(arguments: list[str]) -> bool:
    """Return whether pytest's arguments choose tests: by path, or with -k or -m."""
    return any(argument.startswith(("-k", "-m")) or argument[:1] != "-" for argument in arguments)


def report(title: str, code: int) -> None:
    outcome = {0: "passed", NOTHING_COLLECTED: "nothing to run"}.get(code, "FAILED")
    print(f"{title}: {outcome} after {time.monotonic() - BEGAN:.1f} s.", flush=True)


def start(
    arguments: list[str], environment: Mapping[str, str], output: IO[str] | None = None
) -> subprocess.Popen[bytes]:
    """Start pytest in a child process, which `interrupt` must end."""
    command = [sys.executable, *coverage_gaps.runner(environment), "-m", "pytest", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)


def interrupt(child: subprocess.Popen[bytes]) -> None:
    """End the child if it does not end by itself: a terminal sends Ctrl-C to both, but SIGTERM only to us."""
    try:
        child.wait(INTERRUPT_SECONDS)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)
        reap(child)


def reap(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(CLEANUP_SECONDS)
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
