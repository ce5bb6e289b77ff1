"""manage.py started a hundred times, at the price of half of them.

Each start is a process of its own, with the variables that it is given and no others, which reads all of our
modules anew; but it is forked from one that has imported the libraries already. These alone: nothing is
imported beforehand that reads the settings or the environment. Tests that are about the start itself (of the
tour, of the served site) start a Python of their own.
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
    """Run manage.py with these variables and no others of ours."""
    with TemporaryDirectory(prefix="quotasite-manage-") as folder:
        said = Path(folder, "stdout"), Path(folder, "stderr")
        given = {"PATH": os.environ["PATH"], **environment}
        code = order([list(arguments), given, *map(str, said)])
        return subprocess.CompletedProcess(["manage.py", *arguments], code, *(it.read_text() for it in said))


def order(asked: list[object]) -> int:
    forker = started()
    assert forker.stdin
    assert forker.stdout
    print(json.dumps(asked), file=forker.stdin, flush=True)
    return int(forker.stdout.readline())


@cache
def started() -> "subprocess.Popen[str]":
    """The process that forks; it ends with ours."""
    forker = subprocess.Popen(
        [sys.executable, "-m", "tests.tools.forked"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(forker.communicate)
    return forker


def serve() -> None:
    """Run what is asked for, one after the other, and tell its exit code."""
    sys.path[0] = str(ROOT)  # as it is for manage.py
    for name in LIBRARIES:
        import_module(name)
    assert not [name for name in sys.modules if name.partition(".")[0] in OURS]
    assert threading.active_count() == 1, "a fork would lose the others"
    gc.freeze()  # else each child collects what all of them share
    for line in sys.stdin:
        child = os.fork()
        if not child:
            become(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def become(arguments: list[str], environment: dict[str, str], *said: str) -> None:
    for number, name in enumerate((os.devnull, *said)):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["manage.py", *arguments]
    runpy.run_path("manage.py", run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    serve()
