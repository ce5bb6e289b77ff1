"""The figures that tests show: each scenario runs some of the suite, on its own throw-away PostgreSQL."""

import os
import re
import subprocess
import sys
from collections.abc import Callable

from bench.chaos.ground import Database, Finding
from tests import ROOT


def suite(*arguments: str) -> Callable[[Database], Finding]:
    """Return a scenario that runs these tests and reports how many passed."""

    def run(_: Database) -> Finding:
        command = [sys.executable, "-m", "pytest", "-q", *arguments]
        environment = {name: value for name, value in os.environ.items() if name != "TEST_DATABASE_URL"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        counted = re.findall(r"\d+ (?:passed|failed|errors?|skipped)", done.stdout.splitlines()[-1])
        return Finding(f"tests: {', '.join(counted) or 'none'}", done.returncode == 0)

    return run
