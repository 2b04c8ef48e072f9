"""What the project promises about itself, checked against its own files."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

import pipeline_engine
import pipeline_engine_sdk

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = sorted([*ROOT.glob("daemon/**/*.py"), *ROOT.glob("sdk/**/*.py")])
OTHERS = sorted([*ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("tests/**/*.py")])
LONGEST_MODULE = 500  # lines


def names_of(requirements: list[str]) -> set[str]:
    """The distributions that these requirements name, without versions, extras and markers."""
    return {re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0].lower() for requirement in requirements}


def declared() -> set[str]:
    extras = PROJECT["optional-dependencies"].values()
    return names_of([*PROJECT["dependencies"], *(one for extra in extras for one in extra)]) - {PROJECT["name"]}


def explained() -> set[str]:
    """The first cell of each row of the tables in docs/dependencies.md."""
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE))


def test_every_dependency_has_its_reason_and_no_reason_outlives_its_dependency() -> None:
    assert explained() == declared()


def test_every_dependency_is_locked() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    locked = names_of([line for line in lines if "==" in line])
    assert declared() <= locked


@pytest.mark.parametrize("path", [*MODULES, *OTHERS], ids=lambda path: str(path.relative_to(ROOT)))
def test_module_is_short(path: Path) -> None:
    assert path.read_text(encoding="utf-8").count("\n") <= LONGEST_MODULE


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_names_its_responsibility(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text)) if text else ""
    assert docstring is not None, "the first docstring line names the module's one responsibility"


def test_engine_and_sdk_have_one_version_and_the_changelog_tells_it() -> None:
    assert pipeline_engine_sdk.__version__ == pipeline_engine.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    assert pipeline_engine.__version__ in headings


def test_both_packages_tell_that_they_are_typed() -> None:
    for package in (pipeline_engine, pipeline_engine_sdk):
        assert package.__file__ is not None
        assert Path(package.__file__).with_name("py.typed").is_file()
