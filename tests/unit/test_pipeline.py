"""The definition as a graph: what is refused, and the order of what is not."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline_engine.decoding import decode
from pipeline_engine.models import PipelineDef, StepId
from pipeline_engine.pipeline import Graph, check, find_cycle, input_step


def definition(*steps: dict[str, Any]) -> PipelineDef:
    return decode({"type": "t", "steps": list(steps)}, PipelineDef)


def step(step_id: str, *needs: str, **more: Any) -> dict[str, Any]:
    return {"id": step_id, "kind": "map", "config": {"map": "identity"}, "depends_on": list(needs), **more}


def found(*steps: dict[str, Any]) -> list[str]:
    return [str(problem) for problem in check(definition(*steps))]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([step("a", "a")], "steps: the dependencies form a cycle: a -> a"),
        ([step("a", "b"), step("b", "a")], "steps: the dependencies form a cycle: a -> b -> a"),
        (
            [step("r"), step("a", "r", "c"), step("b", "a"), step("c", "b"), step("z", "r")],
            "steps: the dependencies form a cycle: a -> c -> b -> a",
        ),
        ([step("a", "a"), step("a")], "steps[1].id: the id 'a' is used twice"),
        ([step("a"), step("b", "typo")], "steps[1].depends_on[0]: step 'b' depends on 'typo', which does not exist"),
        ([step("a.b")], "steps[0].id: 'a.b' is not 1 to 64 letters, digits, _ or -"),
        ([step("x" * 65)], f"steps[0].id: {'x' * 65!r} is not 1 to 64 letters, digits, _ or -"),
        (
            [step("a"), {"id": "b", "kind": "llm", "depends_on": ["a"]}],
            "steps[1].provider_profile_id: is required for a step of the kind llm",
        ),
    ],
)
def test_a_bad_graph_is_refused_with_the_ids_it_is_about(steps: list[dict[str, Any]], words: str) -> None:
    assert found(*steps) == [words]


def test_all_faults_are_told_at_once() -> None:
    assert len(found(step("bad id"), step("a", "ghost"), step("b", "c"), step("c", "b"))) == 3


def test_steps_may_be_written_in_any_order_and_name_a_dependency_twice() -> None:
    steps = [step("b", "a", "a"), step("c", "a"), step("d", "b", "c"), step("a")]
    assert found(*steps) == []
    graph = Graph(definition(*steps))
    assert graph.order == ("a", "b", "c", "d")
    assert graph.dependencies[StepId("b")] == ("a",)
    assert graph.ancestors(StepId("d")) == ["b", "c", "a"]
    assert graph.ancestors(StepId("a")) == []
    assert graph.downstream(StepId("a")) == {"b", "c", "d"}
    assert graph.downstream(StepId("d")) == set()


def test_a_chain_of_thousands_needs_no_deep_stack() -> None:
    chain = [step(f"s{n}", *([f"s{n - 1}"] if n else [])) for n in range(5000)]
    assert found(*chain) == []
    graph = Graph(definition(*chain))
    assert len(graph.ancestors(StepId("s4999"))) == 4999
    ring: dict[StepId, tuple[StepId, ...]] = {StepId(f"s{n}"): (StepId(f"s{(n + 1) % 5000}"),) for n in range(5000)}
    assert len(find_cycle(ring)) == 5001


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"config": {}}, "config.map: is required"),
        ({"config": {"map": "template"}}, "config.template: is required for map: template"),
        ({"config": {"map": "select"}}, "config.expression: is required for map: select"),
        ({"config": {"map": "parse"}}, "config.format: is required for map: parse"),
        ({"config": {"map": "regex"}}, "config.pattern: is required"),
        ({"config": {"map": "regex", "pattern": "("}}, "config.pattern: is not a regular expression"),
        ({"config": {"map": "regex", "pattern": "(" * 400 + ")" * 400}}, "it is nested too deeply"),
        (
            {"config": {"map": "identity", "reduce": "concat"}},
            "config.reduce: means nothing for a step of the kind map",
        ),
        ({"config": {"map": "identity", "split": {"by": "lines"}}}, "config.split: needs mode: fanout or per_item"),
        (
            {"config": {"map": "identity", "split": {"by": "lines", "size": 2, "overlap": 2}}, "mode": "fanout"},
            "split.overlap: must be smaller than size",
        ),
        (
            {"config": {"map": "identity", "split": {"by": "regex"}}, "mode": "fanout"},
            "split.pattern: is required",
        ),
        (
            {
                "config": {"map": "identity", "split": {"by": "regex", "pattern": "(" * 400 + ")" * 400}},
                "mode": "fanout",
            },
            "split.pattern: is not a regular expression: it is nested too deeply",
        ),
        (
            {"config": {"map": "identity", "split": {"by": "lines", "pattern": "x"}}, "mode": "fanout"},
            "split.pattern: only means something with by: regex",
        ),
        (
            {"config": {"map": "identity", "split": {"by": "chars", "overlap": 4000}}, "mode": "fanout"},
            "split.overlap: must be smaller than size, 4000",
        ),
        (
            {"config": {"map": "identity", "split": {"by": "csv", "overlap": 1}}, "mode": "fanout"},
            "split.overlap: must be smaller than size, 1",
        ),
        (
            {"config": {"map": "identity", "split": {"by": "regex", "pattern": "x", "size": 2}}, "mode": "fanout"},
            "split.size: means nothing with by: regex",
        ),
        (
            {"config": {"map": "identity", "split": {"by": "regex", "pattern": "x", "overlap": 2}}, "mode": "fanout"},
            "split.overlap: means nothing with by: regex",
        ),
        (
            {"config": {"map": "identity", "split": {"by": "lines", "size": 10**30}}, "mode": "fanout"},
            "split.size: must be at most 1,000,000,000",
        ),
        (
            {"config": {"map": "identity", "over": "z"}, "mode": "fanout"},
            "config.over: 'z' must also stand in depends_on",
        ),
        ({"kind": "reduce", "config": {}}, "config.reduce: is required"),
        ({"kind": "reduce", "config": {"reduce": "count_by"}}, "config.by: is required for reduce: count_by"),
        ({"kind": "custom", "config": {}}, "config.handler: a custom step needs a handler"),
        ({"output_type": "embedding"}, "output_type: embedding needs a step of the kind llm"),
        ({"output_type": "binary", "output_format": "json_loose"}, "output_format: bytes are not parsed"),
        ({"kind": "llm", "provider_profile_id": "p", "config": {}, "output_type": "table"}, "output_format: a table"),
        ({"provider_profile_id": "p", "config": {}, "output_type": "table"}, "output_format: a table"),
        ({"config": {"map": "template", "template": "x"}, "output_type": "table"}, "output_format: a table"),
        ({"kind": "reduce", "config": {"reduce": "concat"}, "output_type": "table"}, "output_format: a table"),
        ({"prompt": {"meta": {"messages": "x"}}}, "prompt.meta.messages: expected a list"),
        ({"prompt": {"meta": {"messages": [{"role": "user"}]}}}, "prompt.meta.messages[0]: expected {role"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(more: dict[str, Any], words: str) -> None:
    [problem] = found(step("a", **more))
    assert problem.startswith("steps[0].")
    assert words in problem


def test_an_overlap_is_measured_by_the_size_that_holds() -> None:
    split = {"by": "chars", "overlap": 10}
    assert found(step("a", mode="fanout", config={"map": "identity", "split": split})) == []


def test_a_table_may_come_as_a_value_or_as_json() -> None:
    assert found(step("a", output_type="table", config={"map": "parse", "format": "csv"})) == []
    assert found(step("a", output_type="table", kind="custom", config={"handler": "h"})) == []
    as_json = {"output_type": "table", "output_format": "json_loose"}
    assert found(step("a", kind="llm", provider_profile_id="p", config={}, **as_json)) == []
    assert found(step("a", config={"map": "template", "template": "[]"}, **as_json)) == []


def test_a_step_takes_the_sources_the_items_or_the_elements_of_another() -> None:
    steps = definition(
        step("a", mode="fanout"),
        step("b", "a", mode="per_item"),
        step("c", "a", "b", mode="per_item"),
        step("d", "a", "b", mode="fanout", config={"map": "identity", "over": "a"}),
        step("e", "a"),
    ).steps
    assert [input_step(one) for one in steps] == [None, "a", "b", "a", None]
