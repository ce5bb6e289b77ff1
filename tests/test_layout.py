"""The house rules that no linter knows."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("module", ["policy", "sql"])
def test_the_rules_and_the_statements_import_the_standard_library_only(module: str) -> None:
    tree = ast.parse((ROOT / f"quotas/{module}.py").read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} | {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    assert {str(name).partition(".")[0] for name in imported} <= sys.stdlib_module_names


def test_the_requirements_are_locked_together() -> None:
    """What the three files share, they share to the version."""
    locked = [
        set(re.findall(r"^(\S+==\S+)", (ROOT / f"requirements{name}.txt").read_text(), re.MULTILINE))
        for name in ("", "-test", "-dev")
    ]
    assert locked[0] < locked[1] < locked[2]


def test_the_links_between_the_pages_hold() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("clients/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
