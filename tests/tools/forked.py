"""Run manage.py a hundred times at half the cost.

Each run is a process of its own with exactly the given variables, and imports all of our modules anew. But it
is forked from a process that has already imported the libraries that read neither settings nor environment.
Tests of the start itself (of the tour, of the served site) start a Python of their own.
"""

import atexit
import gc
import json
import os
import runpy
import subprocess
import sys
import threading
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from tests import ROOT

LIBRARIES = (
    "django.db.backends.postgresql.psycopg_any",
    "django.db.backends.sqlite3.base",
    "django.db.migrations.executor",
    "django.urls",
    "jsonschema",
    "jwt.algorithms",
    "requests",
    "svix.webhooks",
    "yaml",
)
OURS = ("quotas", "quotasite", "webhooks")


def manage(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run manage.py with these variables and PATH only, without the .env of whoever runs the tests."""
    with TemporaryDirectory(prefix="quotasite-manage-") as folder:
        outputs = Path(folder, "stdout"), Path(folder, "stderr")
        variables = {"PATH": os.environ["PATH"], "ENV_FILE": "", **environment}
        code = run_forked([list(arguments), variables, *map(str, outputs)])
        texts = (path.read_text() for path in outputs)
        return subprocess.CompletedProcess(["manage.py", *arguments], code, *texts)


def run_forked(request: list[object]) -> int:
    """Return the exit code of a fork with these arguments of `become`."""
    forker = started()
    assert forker.stdin
    assert forker.stdout
    print(json.dumps(request), file=forker.stdin, flush=True)
    return int(forker.stdout.readline())


def coverage_variables() -> dict[str, str]:
    """Return the variables with which a child process is measured too (`python -m tests --coverage`)."""
    return {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}


@cache
def started() -> "subprocess.Popen[str]":
    """Start the process that forks; it ends with ours."""
    forker = subprocess.Popen(
        [sys.executable, "-m", "tests.tools.forked"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **coverage_variables()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(forker.communicate)
    return forker


def serve() -> None:
    """Run each request in a fork, one after another, and print its exit code."""
    sys.path[0] = str(ROOT)  # as it is for manage.py
    for name in LIBRARIES:
        import_module(name)
    assert not [name for name in sys.modules if name.partition(".")[0] in OURS]
    assert threading.active_count() == 1, "a fork would lose the other threads"
    gc.freeze()  # else each child's garbage collector visits the objects that all share
    for line in sys.stdin:
        child = os.fork()
        if not child:
            become(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def become(arguments: list[str], environment: dict[str, str], *outputs: str) -> None:
    for number, name in enumerate((os.devnull, *outputs)):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["manage.py", *arguments]
    runpy.run_path("manage.py", run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    serve()
