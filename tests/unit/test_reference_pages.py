"""The reference pages in docs/ name all that the code has, and nothing that it has not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from pipeline_engine.api.calls import Route
from pipeline_engine.api.errors import STATUSES
from pipeline_engine.api.openapi import describe
from pipeline_engine.api.routes import ROUTES
from pipeline_engine.cli.commands import cli
from pipeline_engine.configured_profiles import FileProfile
from pipeline_engine.models import (
    Job,
    JobRequest,
    ManagedServer,
    ProviderExtra,
    ProviderKind,
    ProviderOverride,
    RerunRequest,
    Sandbox,
)
from pipeline_engine.providers.base import Target

DOCS = Path(__file__).resolve().parents[2] / "docs"
CALL = re.compile(r"^### `([A-Z]+) (/\S*)`$", re.MULTILINE)


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def code_words(text: str) -> set[str]:
    """The words that stand in backticks."""
    return {word for code in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"[\w-]+", code)}


def names_of(type_: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(type_)}


def section_of(page: str, heading: str) -> str:
    """From a heading to the next one."""
    return text_of(page).partition(f"{heading}\n")[2].partition("\n#")[0]


def test_the_page_of_the_api_has_each_call_of_its_document_once_and_no_other() -> None:
    paths = describe(ROUTES)["paths"]
    described = sorted((method.upper(), path) for path, methods in paths.items() for method in methods)
    assert sorted(CALL.findall(text_of("http-api.md"))) == described


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_the_section_of_a_call_names_its_parameters_and_its_statuses(route: Route) -> None:
    section = section_of("http-api.md", f"### `{route.method} {route.path}`")
    words = code_words(section)
    assert names_of(route.query) <= words
    assert all(name in section for name in route.headers)
    for code in route.errors:
        assert str(STATUSES[code]) in section, code


def test_the_page_of_the_api_names_every_error_with_its_status() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", text_of("http-api.md"), re.MULTILINE)
    assert {code: int(status) for status, code in rows} == STATUSES


@pytest.mark.parametrize("type_", [JobRequest, RerunRequest, Job], ids=lambda type_: type_.__name__)
def test_the_page_of_the_api_names_every_field(type_: type[msgspec.Struct]) -> None:
    assert not names_of(type_) - code_words(text_of("http-api.md"))


def test_the_page_of_the_providers_has_every_key_of_a_profile_and_no_other() -> None:
    rows = re.findall(r"^\| (`.+?) \|", section_of("providers.md", "## Profiles"), re.MULTILINE)
    assert code_words(" ".join(rows)) == names_of(FileProfile)
    assert set(ProviderKind) <= code_words(section_of("providers.md", "## Profiles"))


def settings_table() -> dict[str, list[str]]:
    """Name of a setting → its other cells: default, for, step, meaning."""
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", section_of("providers.md", "## All settings"), re.MULTILINE)
    return {name: cells.split(" | ") for name, cells in rows}


def test_the_page_of_the_providers_has_every_setting_and_says_which_of_them_a_step_may_change() -> None:
    changeable = names_of(ProviderOverride)
    wanted = {name: "yes" if name in changeable else "no" for name in names_of(ProviderExtra)}
    assert {name: cells[2] for name, cells in settings_table().items()} == wanted


def test_the_page_of_the_providers_tells_the_numbers_that_are_the_defaults() -> None:
    defaults = {one.name: one.default for one in msgspec.structs.fields(Target)}
    numbers = {name: float(cells[0]) for name, cells in settings_table().items() if cells[0].isdigit()}
    assert len(numbers) > 5
    assert numbers == {name: defaults[name] for name in numbers}
    told = {name for name, value in defaults.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    assert told == set(numbers)


@pytest.mark.parametrize("type_", [ManagedServer, Sandbox], ids=lambda type_: type_.__name__)
def test_the_page_of_the_providers_names_the_parts_of_settings(type_: type[msgspec.Struct]) -> None:
    assert not names_of(type_) - code_words(text_of("providers.md"))


def commands_below(group: click.Group, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Each command that is no group, with the words that call it."""
    context = click.Context(group)
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        assert command is not None
        full = f"{name} {word}".strip()
        if isinstance(command, click.Group):
            yield from commands_below(command, full)
        else:
            yield full, command


COMMANDS = dict(commands_below(cli))


def test_the_page_of_the_command_line_has_no_command_that_is_not_there() -> None:
    headings = re.findall(r"^##+ ([a-z]+(?: [a-z]+)?)$", text_of("command-line.md"), re.MULTILINE)
    groups = {name.partition(" ")[0] for name in COMMANDS if " " in name}
    assert set(headings) - groups == set(COMMANDS)
    assert len(headings) == len(set(headings))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_section_of_a_command_names_its_options(name: str) -> None:
    section = re.search(rf"(?ms)^##+ {name}$(.*?)(?=^#|\Z)", text_of("command-line.md"))
    assert section is not None
    options = {one for parameter in COMMANDS[name].params for one in parameter.opts if one.startswith("-")}
    # What all clients of the daemon have stands once, above their sections.
    assert not options - {"--url", "--json"} - set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", section[1]))
