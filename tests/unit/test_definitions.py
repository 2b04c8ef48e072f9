from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tests.definition_setting import PROFILES, definition_checker, types_in, write

from pipeline_engine.definitions import (
    DefinitionChecker,
    decode_definition,
)
from pipeline_engine.demo import demo_pipelines
from pipeline_engine.errors import InvalidRequestError
from pipeline_engine.models import ProviderExtra, ProviderKind, ProviderProfile
from pipeline_engine.templates import Templates


@pytest.fixture
def checker() -> DefinitionChecker:
    return definition_checker()


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
