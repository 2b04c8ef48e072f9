"""Definition files: what they hold, and how each fault is told with its place."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from tests.definition_setting import definition_checker, types_in, write

from pipeline_engine.definitions import (
    DefinitionChecker,
    load_definitions,
    load_directories,
)
from pipeline_engine.errors import InvalidRequestError, Problem
from pipeline_engine.models import PipelineDef


@pytest.fixture
def checker() -> DefinitionChecker:
    return definition_checker()


YAML = "type: y.v1\nversion: '1'\nsteps:\n  - {id: a, kind: llm, provider_profile_id: up}\n"
JSON = '[{"type": "j.v1", "steps": [{"id": "a", "kind": "llm", "provider_profile_id": "up"}]}]'
TOML = 'type = "t.v1"\n[[steps]]\nid = "a"\nkind = "llm"\nprovider_profile_id = "up"\n'


def refusal(file: Path, checker: DefinitionChecker) -> list[str]:
    """The message without the name of the file, which begins each line."""
    with pytest.raises(InvalidRequestError) as caught:
        load_definitions(file, checker=checker)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{file}: ") for line in lines)
    return [line.removeprefix(f"{file}: ") for line in lines]


@pytest.mark.parametrize(
    ("name", "text", "types"),
    [
        ("p.yaml", YAML, [("y.v1", None)]),
        ("p.json", JSON, [("j.v1", 1)]),
        ("p.toml", TOML, [("t.v1", None)]),
        (
            "p.yml",
            (
                "- type: a\n  steps: [{id: x, kind: map, config: {map: identity}}]\n"
                "- type: b\n  steps: [{id: x, kind: map, config: {map: identity}}]\n"
            ),
            [("a", 1), ("b", 3)],
        ),
        ("p.yaml", "pipelines:\n- type: a\n  steps: [{id: x, kind: map, config: {map: identity}}]\n", [("a", 2)]),
        (
            "p.toml",
            (
                '[[pipelines]]\ntype = "a"\n[[pipelines.steps]]\nid = "x"\nkind = "map"\nconfig.map = "identity"\n'
                '[[pipelines]]\ntype = "b"\n[[pipelines.steps]]\nid = "x"\nkind = "map"\nconfig.map = "identity"\n'
            ),
            [("a", 1), ("b", 7)],
        ),
    ],
)
def test_a_file_holds_one_definition_or_a_list(
    tmp_path: Path, checker: DefinitionChecker, name: str, text: str, types: list[tuple[str, int | None]]
) -> None:
    assert types_in(write(tmp_path, name, text), checker) == types


def test_every_problem_of_a_file_has_its_line_and_path(tmp_path: Path, checker: DefinitionChecker) -> None:
    file = write(
        tmp_path,
        "p.yaml",
        "- type: a\n"
        "  steps:\n"
        "    - id: x\n"
        "      kind: magic\n"
        "- type: b\n"
        "  steps:\n"
        "    - id: x\n"
        "      kind: llm\n"
        "      provider_profile_id: up\n"
        "      prompt:\n"
        "        user: |\n"
        "          {{ nothing }}\n"
        "    - id: y\n"
        "      kind: llm\n",
    )
    first, second, third = refusal(file, checker)
    assert first.startswith("line 4: [0].steps[0].kind: 'magic' is not one of llm, ")
    assert second == "line 13: [1].steps[1].provider_profile_id: is required for a step of the kind llm"
    assert third.startswith("line 11: [1].steps[0].prompt.user: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file holds no definition"),
        ("just words", "expected an object"),
        ("type: t\n", "steps: is required"),
        ("type: t\nsteps: []\n", "line 2: steps: must not be empty"),
        ("type: t\nversion: 1.0\n", "line 2: version: expected a text, got 1.0; put it in quotes"),
        ("pipelines: 3\n", "line 1: pipelines: expected a list"),
        ("pipelines: []\ntype: t\n", "line 2: type: unknown key beside pipelines"),
        ("type: t\ntype: u\n", "line 2: type: the key 'type' stands here twice"),
        (
            "- &a {type: t, steps: [{id: a, kind: map, config: {map: identity}}]}\n- *a\n",
            "line 2: [1].type: the type 't' is",
        ),
    ],
)
def test_files_that_hold_no_definition_are_refused(
    tmp_path: Path, checker: DefinitionChecker, text: str, words: str
) -> None:
    assert any(line.startswith(words) for line in refusal(write(tmp_path, "p.yaml", text), checker))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, checker: DefinitionChecker) -> None:
    assert refusal(tmp_path / "missing.yaml", checker) == ["cannot be read: No such file or directory"]
    (tmp_path / "folder.yaml").mkdir()
    assert refusal(tmp_path / "folder.yaml", checker) == ["cannot be read: Is a directory"]


def test_a_bad_file_in_a_directory_hides_no_other(tmp_path: Path, checker: DefinitionChecker) -> None:
    write(tmp_path, "1.yaml", YAML)
    bad = write(tmp_path, "2.yaml", "type: [\n")
    write(tmp_path, "3.json", JSON)
    write(tmp_path, "4.TOML", TOML)
    write(tmp_path, ".hidden.yaml", "nonsense")
    write(tmp_path, "README.md", "nonsense")
    os.mkfifo(tmp_path / "5.yaml")
    result = load_directories([tmp_path], checker=checker)
    assert {name: loaded.file.name for name, loaded in result.definitions.items()} == {
        "y.v1": "1.yaml",
        "j.v1": "3.json",
        "t.v1": "4.TOML",
    }
    assert list(result.errors) == [bad]
    assert "not valid YAML" in str(result.errors[bad])


def test_a_link_that_cannot_be_followed_is_a_bad_file_and_hides_no_other(
    tmp_path: Path, checker: DefinitionChecker
) -> None:
    write(tmp_path, "p.yaml", YAML)
    reasons = {
        "gone.yaml": ("nowhere/p.yaml", "No such file or directory"),
        "long.yaml": ("n" * 300, "File name too long"),
        "loop.yaml": ("loop.yaml", "Too many levels of symbolic links"),
    }
    for name, (target, _) in reasons.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / ".hidden.yaml").symlink_to("nowhere")
    (tmp_path / "folder.yaml").symlink_to(tmp_path)
    result = load_directories([tmp_path], checker=checker)
    assert list(result.definitions) == ["y.v1"]
    assert {file.name: str(error) for file, error in result.errors.items()} == {
        name: f"{tmp_path / name}: cannot be read: {reason}" for name, (_, reason) in reasons.items()
    }


def test_a_file_on_which_the_check_itself_fails_hides_no_other(
    tmp_path: Path, checker: DefinitionChecker, caplog: pytest.LogCaptureFixture
) -> None:
    bad = write(tmp_path, "1.yaml", JSON.replace("j.v1", "bad.v1"))
    write(tmp_path, "2.yaml", YAML)

    class BrokenChecker(DefinitionChecker):
        def check(self, definition: PipelineDef, *, path: str = "") -> list[Problem]:
            if definition.type == "bad.v1":
                raise RecursionError("without end")
            return super().check(definition, path=path)

    broken = BrokenChecker(
        templates=checker.templates,
        profiles=checker.profiles,
        profile_ids=checker.profile_ids,
        handlers=checker.handlers,
    )
    with caplog.at_level(logging.ERROR):
        result = load_directories([tmp_path], checker=broken)
    assert list(result.definitions) == ["y.v1"]
    assert str(result.errors[bad]) == f"{bad}: cannot be checked: RecursionError: without end"
    [record] = caplog.records
    assert record.exc_info is not None


def test_the_same_type_in_two_files_is_told_with_both_names(tmp_path: Path, checker: DefinitionChecker) -> None:
    first_folder, second_folder = tmp_path / "b", tmp_path / "a"
    first_folder.mkdir()
    second_folder.mkdir()
    first = write(first_folder, "p.yaml", YAML)
    second = write(second_folder, "p.yaml", YAML)
    result = load_directories([first_folder, second_folder], checker=checker)
    assert result.definitions["y.v1"].file == first
    assert list(result.errors) == [second]
    assert str(result.errors[second]) == f"{second}: type: the type 'y.v1' is already defined in {first}"


def test_a_missing_directory_is_told_and_hides_no_other(tmp_path: Path, checker: DefinitionChecker) -> None:
    write(tmp_path, "p.yaml", YAML)
    missing = tmp_path / "missing"
    result = load_directories([missing, tmp_path], checker=checker)
    assert list(result.definitions) == ["y.v1"]
    assert str(result.errors[missing]) == f"{missing}: cannot be read: No such file or directory"
