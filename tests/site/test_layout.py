"""Rules of this project that no linter checks."""

import ast
import json
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import ROOT

PYTHON_VERSION = "clients/python/src/quotasite_client/version.py"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


PLAIN = [ROOT / f"quotas/store/{name}.py" for name in ("rows", "sql", "steps")]


@pytest.mark.parametrize("module", [*sorted((ROOT / "quotas/rules").glob("*.py")), *PLAIN])
def test_the_rules_steps_and_statements_import_the_standard_library_only(module: Path) -> None:
    tree = ast.parse(module.read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} | {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    others = {str(name) for name in imported if str(name).partition(".")[0] not in sys.stdlib_module_names}
    assert all(name.startswith("quotas.rules") or name == "quotas.store.rows" for name in others)


@dataclass(frozen=True)
class Locked:
    """A file of requirements: its pins as (name, version), and the names that are direct dependencies."""

    text: str
    pins: set[tuple[str, str]]
    direct: set[str]

    @classmethod
    def read(cls, group: str | None) -> "Locked":
        text = (ROOT / f"requirements{f'-{group}' if group else ''}.txt").read_text()
        entries = re.findall(r"^([\w.-]+)==([^\s;]+)(.*(?:\n[ #].*)*)", text, re.MULTILINE)
        direct = {name for name, _, comment in entries if "quotasite (pyproject.toml" in comment}
        return cls(text, {(name, version) for name, version, _ in entries}, direct)

    def pins_of(self, names: set[str]) -> set[tuple[str, str]]:
        return {pin for pin in self.pins if pin[0] in names}


def declared(group: str | None) -> list[Requirement]:
    """Return the dependencies that pyproject.toml declares for the file of a group (None: the service)."""
    if group is None:
        return [Requirement(line) for line in PROJECT["project"]["dependencies"]]
    lines = PROJECT["dependency-groups"][group]
    included = [line["include-group"] for line in lines if isinstance(line, dict)] or [None]
    return [it for name in included for it in declared(name)] + [
        Requirement(line) for line in lines if isinstance(line, str)
    ]


@pytest.mark.parametrize("group", [None, *PROJECT["dependency-groups"]])
def test_the_direct_dependencies_are_the_declared_ones_at_allowed_versions(group: str | None) -> None:
    locked, requirements = Locked.read(group), declared(group)
    assert locked.direct == {canonicalize_name(it.name) for it in requirements}
    for it in requirements:
        pins = locked.pins_of({canonicalize_name(it.name)})
        assert all(it.specifier.contains(version) for _, version in pins), it


@pytest.mark.parametrize("group", [None, *PROJECT["dependency-groups"]])
def test_no_locked_file_names_a_registry(group: str | None) -> None:
    text = Locked.read(group).text
    assert "://" not in text
    assert not re.search(r"^-", text, re.MULTILINE)


def test_the_requirements_are_locked_together() -> None:
    """The files pin the packages that they share to the same versions."""
    run, test, dev, bench = (Locked.read(group) for group in (None, "test", "dev", "bench"))
    assert run.pins < test.pins < dev.pins
    assert test.pins < bench.pins
    shared = {name for name, _ in dev.pins} & {name for name, _ in bench.pins}
    assert dev.pins_of(shared) == bench.pins_of(shared)


def test_the_version_is_the_same_everywhere() -> None:
    version = PROJECT["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## (\S+) \(\d{4}-\d\d-\d\d\)$", changelog, re.MULTILINE)
    client = ROOT / "clients/typescript"
    package, locked = (json.loads((client / f"package{it}.json").read_text()) for it in ("", "-lock"))
    archives = re.findall(r"quotasite-client-([\d.]+)\.tgz", (ROOT / "clients/README.md").read_text())
    [python] = re.findall('^VERSION = "(.*?)"', (ROOT / PYTHON_VERSION).read_text(), re.MULTILINE)
    of_npm = [package["version"], locked["version"], locked["packages"][""]["version"], *archives]
    shown = [released[0], python, *of_npm]
    assert set(shown) == {version}
    assert len(archives) == 4


def test_the_links_between_the_pages_hold() -> None:
    others = [
        page for place in ("clients", "clients/python", "examples/*") for page in ROOT.glob(f"{place}/*.md")
    ]
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *others]:
        for target, _, section in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]+))?\)", page.read_text()):
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name} links to {target}"
            assert not section or section in sections_of(path), f"{page.name}: {target}#{section}"


def sections_of(page: Path) -> set[str]:
    """Return the names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
