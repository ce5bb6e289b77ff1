"""The commands of the documents: what stands in their ```sh blocks, and which of them no test can run."""

import re
import sys
from pathlib import Path

from tests import ROOT

OPERATORS = ("deploy", "operations", "connections", "clerk")
PAGES = (*OPERATORS, "develop-locally")


def text_of(page: str) -> str:
    return (ROOT / f"docs/{page}.md").read_text()


def blocks_of(page: str, language: str) -> list[str]:
    """Return the texts of a page's code blocks in a language, without their indentation."""
    found = re.finditer(rf"^( *)```{language}\n(.*?)^ *```", text_of(page), re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{match[1]}", "", match[2], flags=re.MULTILINE) for match in found]


def commands_of(page: str) -> list[str]:
    """Return the lines of a page's ```sh blocks, in order."""
    return [line for block in blocks_of(page, "sh") for line in block.splitlines() if line.strip()]


def not_run() -> dict[str, str]:
    """Return the commands that the last table of deploy.md lists, with the reasons."""
    table = text_of("deploy").partition("## What no test runs")[2]
    return dict(re.findall(r"^\| `(.+?)` \| (.+) \|$", table, re.MULTILINE))


def checkout_in(folder: Path) -> Path:
    """Make `folder` a checkout of this repository, whose .venv is the environment that runs the tests."""
    for path in ROOT.iterdir():
        if path.name not in (".git", ".venv", ".env"):
            (folder / path.name).symlink_to(path)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder
