"""Rules of this project that no linter checks."""

import ast
import re
import sys
from pathlib import Path

import pytest

from tests import ROOT


@pytest.mark.parametrize(
    "module", [*sorted((ROOT / "quotas/rules").glob("*.py")), ROOT / "quotas/store/sql.py"]
)
def test_the_rules_and_the_statements_import_the_standard_library_only(module: Path) -> None:
    tree = ast.parse(module.read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} | {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    others = {str(name) for name in imported if str(name).partition(".")[0] not in sys.stdlib_module_names}
    assert all(name.startswith("quotas.rules") for name in others)


def test_the_requirements_are_locked_together() -> None:
    """The three files pin the packages that they share to the same versions."""
    locked = [
        set(re.findall(r"^(\S+==\S+)", (ROOT / f"requirements{name}.txt").read_text(), re.MULTILINE))
        for name in ("", "-test", "-dev")
    ]
    assert locked[0] < locked[1] < locked[2]


def test_the_links_between_the_pages_hold() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("clients/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
