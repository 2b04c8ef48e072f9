from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline_engine.decoding import Secret
from pipeline_engine.definitions import (
    DefinitionChecker,
    decode_definition,
    load_definitions,
    load_directories,
)
from pipeline_engine.demo import demo_pipelines
from pipeline_engine.errors import InvalidRequestError, Problem
from pipeline_engine.models import PipelineDef, ProviderExtra, ProviderKind, ProviderProfile
from pipeline_engine.templates import Templates

PROFILES = {
    "up": ProviderProfile(id="up", kind=ProviderKind.OPENAI, api_key=Secret("k")),
    "ol": ProviderProfile(id="ol", kind=ProviderKind.OLLAMA),
    "img": ProviderProfile(id="img", kind=ProviderKind.IMAGE),
    "tool": ProviderProfile(id="tool", kind=ProviderKind.LOCAL_TOOL, extra=ProviderExtra(command=["cat"])),
    "shell": ProviderProfile(
        id="shell", kind=ProviderKind.LOCAL_TOOL, extra=ProviderExtra(command=["sh", "-c", "{{ item.text }}"])
    ),
    "spoilt": ProviderProfile(
        id="spoilt", kind=ProviderKind.LOCAL_TOOL, extra=ProviderExtra(command=["cat"], env={"LEVEL": "{{ options."})
    ),
}


@pytest.fixture
def checker() -> DefinitionChecker:
    return DefinitionChecker(
        templates=Templates(), profiles=PROFILES.get, profile_ids=PROFILES.keys, handlers={"shout"}.__contains__
    )


def llm(step_id: str, **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "kind": "llm", "provider_profile_id": "up", **fields}


def mapping(operation: str, **fields: Any) -> dict[str, Any]:
    config = {"map": operation, **fields.pop("config", {})}
    return {"id": "m", "kind": "map", "config": config, **fields}


def problems_of(checker: DefinitionChecker, *steps: dict[str, Any], **fields: Any) -> list[tuple[str, str]]:
    definition = decode_definition({"type": "t.v1", "version": "1", "steps": list(steps), **fields})
    return [(problem.path, problem.message) for problem in checker.check(definition)]


def all_problems(checker: DefinitionChecker, **definition: Any) -> list[tuple[str, str]]:
    """What is told of a value that does not decode."""
    decoded, problems = checker.decode({"type": "t.v1", **definition})
    assert decoded is None
    return [(problem.path, problem.message) for problem in problems]


# --- what does not decode -----------------------------------------------------------------------------------------------


def test_what_is_sound_of_a_definition_with_faults_of_form_is_checked_at_once(checker: DefinitionChecker) -> None:
    steps = [
        {"id": "a", "kind": "llm", "prompt": "hello"},
        llm("b", provider_profile_id="openai", depends_on="a", prompt={"user": "{{ sorces }}"}),
        {"id": "c", "kind": "map", "map": "template", "config": {"map": "template", "template": "{{ x"}},
        {"id": "d", "kind": "lmm", "provider_profile_id": "nowhere"},
        llm(
            "e",
            depends_on=["nobody", "d"],
            prompt={"user": "{{ item.text }}"},
            config={"sepparator": 1, "handler": "h"},
        ),
        llm("b", when="options.x ==", on_error="abort"),
    ]
    found = all_problems(checker, steps=steps, options_schema={"type": "text"}, versoin="1")
    assert [path for path, _ in found] == [
        "versoin",
        "steps[0].prompt",
        "steps[1].depends_on",
        "steps[2].map",
        "steps[3].kind",
        "steps[4].config.sepparator",
        "steps[5].on_error",
        "steps[0].provider_profile_id",
        "steps[4].depends_on[0]",
        "steps[5].id",
        "options_schema",
        "steps[1].provider_profile_id",
        "steps[1].prompt.user",
        "steps[2].config.template",
        "steps[4].config.handler",
        "steps[5].when",
    ]


@pytest.mark.parametrize(
    "steps",
    [
        [
            llm("a"),
            llm("b", dependson=["a"], mode="per_item", prompt={"user": "{{ previous.a[0].text }} {{ item.text }}"}),
        ],
        [llm("a"), llm("b", depends_on="a", mode="fanout", config={"over": "a"}, prompt={"user": "{{ index }}"})],
        [llm("a", mode="fan", config={"split": {"by": "lines"}}, prompt={"user": "{{ source.content }}"})],
        [{"id": "a", "kind": "llm", "provider_profile": "up"}],
        [{"id": "a", "kind": "redcue", "config": {"reduce": "template", "template": "{{ items }}"}}],
        [{"id": "a", "kind": "map", "config": {"map": "tmplate", "template": "{{ item.text }}"}}],
        [{"id": "a", "kind": "reduce", "config": {"reduce": "count_by", "by": 1}}],
        [{"id": "a", "kind": "custom", "config": {"handler": ["shout"]}}],
        [llm("a"), llm("b", depends_on=[1, "a"]), llm("c", depends_on=["b"], when="previous.a[0].text == 'x'")],
        [{"kind": "llm"}, llm("b", depends_on=["a"], prompt={"user": "{{ previous.a }}"})],
        [llm("b", provider_override={"headers": {"X-Key": "***"}}, retry=3)],
        ["a", llm("b", depends_on=["a"])],
    ],
)
def test_no_fault_is_told_that_comes_from_what_is_left_out(
    checker: DefinitionChecker, steps: list[dict[str, Any]]
) -> None:
    assert len(all_problems(checker, steps=steps)) == 1


# --- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps",
    [
        [llm("a", prompt={"system": "{{ options.x }}", "user": "{{ sources[0].content }} {{ job.id }} {{ step.id }}"})],
        [llm("a", mode="fanout", prompt={"user": "{{ source.content }} {{ item.text }} {{ index }}"})],
        [llm("a", mode="per_item", prompt={"user": "{{ source.content }} {{ index }}"})],
        [llm("a"), llm("b", mode="per_item", depends_on=["a"], prompt={"user": "{{ item.text }} {{ index }}"})],
        [
            llm("a"),
            llm("b", mode="fanout", depends_on=["a"], config={"over": "a"}, prompt={"user": "{{ item.json }}"}),
        ],
        [llm("a"), llm("b", depends_on=["a"]), llm("c", depends_on=["b"], when="previous.a[0].text == 'yes'")],
        [llm("b", depends_on=["my-a"], prompt={"user": "{{ previous['my-a'][0].text }}"}), llm("my-a")],
        [mapping("template", config={"template": "{{ item.text }}"})],
        [mapping("template", mode="fanout", config={"template": "{{ item.text }} {{ source.label }} {{ index }}"})],
        [mapping("filter", config={"expression": "item.json.n > 1"})],
        [mapping("select", config={"expression": "rows[?n > `1`].name"})],
        [{"id": "r", "kind": "reduce", "config": {"reduce": "template", "template": "{{ items | length }}"}}],
        [{"id": "r", "kind": "reduce", "config": {"reduce": "top", "by": "json.n", "n": 3}}],
        [{"id": "c", "kind": "custom", "config": {"handler": "shout"}}],
        [{"id": "c", "kind": "custom", "provider_profile_id": "tool"}],
        [{"id": "m", "kind": "map", "provider_profile_id": "shell", "mode": "fanout"}],
        [
            {
                "id": "m",
                "kind": "map",
                "provider_profile_id": "spoilt",
                "provider_override": {"env": {"LEVEL": "{{ options.level }}"}, "base_uri": "any words"},
            }
        ],
        [{"id": "i", "kind": "image", "provider_profile_id": "img"}, llm("o", provider_profile_id="ol")],
        [llm("a", output_format="json_strict", config={"json_schema": {"type": "object"}})],
    ],
)
def test_good_definitions_pass(checker: DefinitionChecker, steps: list[dict[str, Any]]) -> None:
    assert problems_of(checker, *steps) == []


@pytest.mark.parametrize(
    ("steps", "read"),
    [
        ([llm("a", prompt={"user": "{{ options.x }} {{ options['y'] }} {{ options.get('z', 1) }}"})], {"x", "y", "z"}),
        ([llm("a", when="options.x | default(false)", prompt={"user": "{{ job.options.y }}"})], {"x"}),
        ([mapping("filter", config={"expression": "item.text == options.x"})], {"x"}),
        ([{"id": "m", "kind": "map", "provider_profile_id": "optional"}], {"command", "env"}),
        ([llm("a", prompt={"user": "{{ options | tojson }}"})], None),
        ([llm("a", prompt={"user": "{{ options[job.id] }}"})], None),
        ([{"id": "c", "kind": "custom", "config": {"handler": "shout"}}], None),
    ],
)
def test_the_options_that_a_definition_reads_are_known(steps: list[dict[str, Any]], read: set[str] | None) -> None:
    extra = ProviderExtra(command=["sh", "{{ options.command }}"], env={"A": "{{ options.env }}"})
    tool = ProviderProfile(id="optional", kind=ProviderKind.LOCAL_TOOL, extra=extra)
    profiles = {**PROFILES, "optional": tool}
    checker = DefinitionChecker(
        templates=Templates(), profiles=profiles.get, profile_ids=profiles.keys, handlers={"shout"}.__contains__
    )
    definition = decode_definition({"type": "t.v1", "steps": steps, "options_schema": {"properties": {"said": {}}}})
    assert checker.options_read(definition) == (None if read is None else {"max_tokens", "said", *read})


@pytest.mark.parametrize(
    ("override", "wrong"),
    [
        ({"env": {"LEVEL": "9"}, "grace_s": 1, "timeout_s": 5}, []),
        ({"env": {"LEVEL": "9", "BASH_ENV": "/dev/stdin", "PATH": "/tmp"}}, ["env.BASH_ENV", "env.PATH"]),
        ({"cwd": "/srv/work"}, []),
        ({"cwd": "/tmp"}, ["cwd"]),
    ],
)
def test_over_http_a_tool_is_started_as_its_profile_says(
    tmp_path: Path, override: dict[str, Any], wrong: list[str]
) -> None:
    extra = ProviderExtra(command=["bash", "-c", "cat"], env={"LEVEL": "1"}, cwd="/srv/work")
    profiles = {"shell": ProviderProfile(id="shell", kind=ProviderKind.LOCAL_TOOL, extra=extra)}
    checker = DefinitionChecker(
        templates=Templates(), profiles=profiles.get, profile_ids=profiles.keys, handlers=frozenset[str]().__contains__
    )
    step = {"id": "c", "kind": "custom", "provider_profile_id": "shell", "provider_override": override}
    value = {"type": "t.v1", "steps": [step]}
    problems = checker.check_sent(decode_definition(value), path="pipeline")
    assert [problem.path for problem in problems] == [f"pipeline.steps[0].provider_override.{key}" for key in wrong]
    assert all("of the profile 'shell'" in problem.message for problem in problems)
    # A file is its owner's, who might as well have written the profile.
    assert types_in(write(tmp_path, "p.json", json.dumps(value)), checker) == [("t.v1", None)]


def test_what_is_no_tool_may_be_sent_with_any_setting(checker: DefinitionChecker) -> None:
    steps = [
        llm("a", provider_override={"env": {"A": "1"}}),
        mapping("identity"),
        llm("b", provider_profile_id="ghost"),
    ]
    assert checker.check_sent(decode_definition({"type": "t.v1", "steps": steps})) == []


def test_an_unknown_profile_is_told_with_those_that_are_known(checker: DefinitionChecker) -> None:
    [(path, message)] = problems_of(checker, llm("a", provider_profile_id="shel"))
    assert path == "steps[0].provider_profile_id"
    assert message == (
        "there is no provider profile 'shel'; did you mean 'shell'? known: img, ol, shell, spoilt, tool, up"
    )


@pytest.mark.parametrize(
    ("steps", "path", "word"),
    [
        ([llm("a", prompt={"user": "{{ unclosed"})], "steps[0].prompt.user", ""),
        ([llm("a", prompt={"user": "{% for x in %}"})], "steps[0].prompt.user", ""),
        ([llm("a", prompt={"system": "{{ optoins.language }}"})], "steps[0].prompt.system", "optoins"),
        ([llm("a", prompt={"user": "{{ item.text }}"})], "steps[0].prompt.user", "item"),
        ([llm("a", prompt={"user": "{{ index }}"})], "steps[0].prompt.user", "index"),
        (
            [llm("a", prompt={"meta": {"messages": [{"role": "user", "content": "{{ nothing }}"}]}})],
            "steps[0].prompt.meta.messages[0].content",
            "nothing",
        ),
        ([llm("a", when="1 +")], "steps[0].when", ""),
        ([llm("a", when="nothing == 1")], "steps[0].when", "nothing"),
        ([llm("a", mode="fanout", when="item.text")], "steps[0].when", "item"),
        ([llm("a"), llm("b", prompt={"user": "{{ previous.a[0].text }}"})], "steps[1].prompt.user", "'a'"),
        ([llm("a", prompt={"user": "{{ previous.ghost[0].text }}"})], "steps[0].prompt.user", "ghost"),
        ([llm("a", prompt={"user": "{{ previous.a[0].text }}"})], "steps[0].prompt.user", "'a'"),
        (
            [llm("a"), llm("b", mode="per_item", depends_on=["a"], prompt={"user": "{{ source.content }}"})],
            "steps[1].prompt.user",
            "source",
        ),
        ([mapping("template", config={"template": "{{ items }}"})], "steps[0].config.template", "items"),
        ([mapping("template", config={"template": "{{ index }}"})], "steps[0].config.template", "index"),
        ([mapping("filter", config={"expression": "item.text ="})], "steps[0].config.expression", ""),
        ([mapping("filter", config={"expression": "itme.text"})], "steps[0].config.expression", "itme"),
        ([mapping("select", config={"expression": "rows[?"})], "steps[0].config.expression", ""),
        (
            [{"id": "r", "kind": "reduce", "config": {"reduce": "count_by", "by": "json."}}],
            "steps[0].config.by",
            "",
        ),
        (
            [{"id": "r", "kind": "reduce", "config": {"reduce": "template", "template": "{{ item }}"}}],
            "steps[0].config.template",
            "item",
        ),
        ([llm("a", config={"json_schema": {"type": "objekt"}})], "steps[0].config.json_schema", "objekt"),
        ([llm("a", provider_profile_id="ghost")], "steps[0].provider_profile_id", "ghost"),
        ([llm("a", provider_profile_id="tool")], "steps[0].provider_profile_id", "openai or ollama"),
        ([llm("a", provider_profile_id="img")], "steps[0].provider_profile_id", "'img'"),
        ([{"id": "i", "kind": "image", "provider_profile_id": "up"}], "steps[0].provider_profile_id", "image"),
        ([mapping("identity", provider_profile_id="up")], "steps[0].provider_profile_id", "local_tool"),
        ([{"id": "c", "kind": "custom", "provider_profile_id": "shell"}], "steps[0].provider_profile_id", "command[2]"),
        ([{"id": "c", "kind": "custom", "provider_profile_id": "spoilt"}], "steps[0].provider_profile_id", "env.LEVEL"),
        (
            [
                {
                    "id": "c",
                    "kind": "custom",
                    "provider_profile_id": "spoilt",
                    "provider_override": {"env": {"LEVEL": "{{ index }}"}},
                }
            ],
            "steps[0].provider_override.env.LEVEL",
            "index",
        ),
        (
            [llm("a", provider_override={"base_uri": "ftp://x"})],
            "steps[0].provider_override.base_uri",
            "'ftp://x' must begin with http:// or https://",
        ),
        ([{"id": "c", "kind": "custom", "config": {"handler": "whisper"}}], "steps[0].config.handler", "whisper"),
    ],
)
def test_one_mistake_gives_one_problem_at_its_place(
    checker: DefinitionChecker, steps: list[dict[str, Any]], path: str, word: str
) -> None:
    ((found_path, message),) = problems_of(checker, *steps)
    assert found_path == path
    assert word in message
    assert message


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([llm("a", depends_on=["b"]), llm("b", depends_on=["a"])], "cycle: a -> b -> a"),
        ([llm("alone", depends_on=["alone"])], "alone -> alone"),
        ([llm("a", depends_on=["ghost"])], "ghost"),
        ([llm("twice"), llm("twice")], "twice"),
        ([llm("bad id!")], "bad id!"),
    ],
)
def test_a_broken_graph_is_told_even_where_templates_use_it(
    checker: DefinitionChecker, steps: list[dict[str, Any]], words: str
) -> None:
    others = [llm("x"), llm("y", depends_on=["x"], prompt={"user": "{{ previous.x[0].text }}"})]
    ((_, message),) = problems_of(checker, *steps, *others)
    assert words in message


def test_an_options_schema_that_is_none_is_refused(checker: DefinitionChecker) -> None:
    assert problems_of(checker, llm("a"), options_schema={"type": "object"}) == []
    ((path, _),) = problems_of(checker, llm("a"), options_schema={"type": 5})
    assert path == "options_schema"


def test_all_problems_come_at_once_under_the_given_path(checker: DefinitionChecker) -> None:
    steps = [llm("a", when="1 +", provider_profile_id="ghost"), llm("b", depends_on=["nobody"])]
    definition = decode_definition({"type": "t", "steps": steps})
    paths = [problem.path for problem in checker.check(definition, path="pipeline")]
    assert paths == [
        "pipeline.steps[1].depends_on[0]",
        "pipeline.steps[0].provider_profile_id",
        "pipeline.steps[0].when",
    ]


def test_a_long_chain_is_checked_in_reasonable_time(checker: DefinitionChecker) -> None:
    steps = [llm("s0")] + [
        llm(f"s{n}", depends_on=[f"s{n - 1}"], prompt={"user": f"{{{{ previous.s{n - 1}[0].text }}}}"})
        for n in range(1, 2000)
    ]
    started = time.perf_counter()
    assert problems_of(checker, *steps) == []
    assert time.perf_counter() - started < 10  # seconds; it takes about one, even on a slow machine


@pytest.mark.parametrize("key", ["api_key", "command"])
@pytest.mark.parametrize("path", ["", "pipeline", "[3]"])
def test_what_only_a_profile_may_set_is_refused_in_words_of_its_own(key: str, path: str) -> None:
    steps = [llm("a", provider_override={key: "secret", "magic": 1})]
    with pytest.raises(InvalidRequestError) as caught:
        decode_definition({"type": "t", "steps": steps}, path=path, source="p.yaml")
    own, other = caught.value.problems
    assert own.path.endswith(f"steps[0].provider_override.{key}")
    assert own.message == f"{key} cannot be set in a step: set it in the profile"
    assert "unknown key" in other.message
    assert "secret" not in str(caught.value)


def test_the_demo_pipelines_are_sound() -> None:
    profiles = {
        "openai-cli": ProviderProfile(id="openai-cli", kind=ProviderKind.OPENAI),
        "ollama-cli": ProviderProfile(id="ollama-cli", kind=ProviderKind.OLLAMA),
    }
    checker = DefinitionChecker(
        templates=Templates(), profiles=profiles.get, profile_ids=profiles.keys, handlers=lambda _: False
    )
    pipelines = demo_pipelines(profiles)
    assert len(pipelines) == 4
    assert [problem for pipeline in pipelines for problem in checker.check(pipeline)] == []


# --- files ------------------------------------------------------------------------------------------------------------

YAML = "type: y.v1\nversion: '1'\nsteps:\n  - {id: a, kind: llm, provider_profile_id: up}\n"
JSON = '[{"type": "j.v1", "steps": [{"id": "a", "kind": "llm", "provider_profile_id": "up"}]}]'
TOML = 'type = "t.v1"\n[[steps]]\nid = "a"\nkind = "llm"\nprovider_profile_id = "up"\n'


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def types_in(file: Path, checker: DefinitionChecker) -> list[tuple[str, int | None]]:
    return [(loaded.definition.type, loaded.line) for loaded in load_definitions(file, checker=checker)]


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
