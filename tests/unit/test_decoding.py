"""Strict decoding: every problem with its path, absent values, secrets."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from pipeline_engine.decoding import KEEP_EMPTY, Secret, decode, from_stored_json, to_json, to_stored_json, try_decode
from pipeline_engine.errors import InvalidRequestError
from pipeline_engine.models import FrozenWire, JobRequest, PipelineDef, StepMode


class Inner(FrozenWire, frozen=True, kw_only=True):
    count: Annotated[int, Meta(ge=1)] = 1
    mode: StepMode = StepMode.SINGLE
    separator: Annotated[str, KEEP_EMPTY] | None = None


class Outer(FrozenWire, frozen=True, kw_only=True):
    name: str
    inner: Inner = Inner()
    many: Annotated[list[Inner], Meta(min_length=1, max_length=2)] = msgspec.field(default_factory=list)
    named: Annotated[dict[str, Inner], Meta(max_length=2)] = msgspec.field(default_factory=dict)
    free: dict[str, Any] = msgspec.field(default_factory=dict)
    key: Secret | None = None
    ratio: float | None = None


def problems(value: object) -> list[str]:
    decoded, found = try_decode(value, Outer)
    assert (decoded is None) == bool(found)
    return [f"{problem.path}: {problem.message}" for problem in found]


def test_everything_that_is_wrong_is_told_with_its_path() -> None:
    value = {
        "name": 1.0,
        "inner": {"count": 0, "mode": "sideways", "extra": 1},
        "many": [{"count": "x"}, {}, {}],
        "named": {"a": {"count": True}},
        "typo": 1,
    }
    found = problems(value)
    for start in (
        "typo: unknown key; known here: name, inner",
        "name: expected a text, got 1.0; put it in quotes",
        "inner.extra: unknown key",
        "inner.count: expected a whole number >= 1 (it is 0)",
        "inner.mode: 'sideways' is not one of single, fanout, per_item",
        "many: has 3 entries; at most 2",
        "many[0].count: expected a whole number",
        "named.a.count: expected a whole number",
    ):
        assert any(text.startswith(start) for text in found), (start, found)
    assert len(found) == 8


def test_null_and_empty_texts_mean_absent() -> None:
    outer = decode({"name": "n", "inner": None, "key": "", "ratio": None, "many": None}, Outer)
    assert outer == Outer(name="n")
    assert problems({"name": ""}) == ["name: is required"]
    assert problems({}) == ["name: is required"]


def test_where_an_empty_text_means_something_it_stays() -> None:
    assert decode({"name": "n", "inner": {"separator": ""}}, Outer).inner.separator == ""
    assert decode({"name": "n", "inner": {"separator": None}}, Outer).inner.separator is None


def test_free_objects_are_left_as_they_are() -> None:
    free = {"a": None, "b": "", "c": [{"d": ""}]}
    assert decode({"name": "n", "free": free}, Outer).free == free


@pytest.mark.parametrize("value", [None, 1, "x", [], True])
def test_what_is_no_object_is_said(value: object) -> None:
    [problem] = problems(value)
    assert "expected an object" in problem


def test_whole_numbers_are_fine_where_fractions_are() -> None:
    assert decode({"name": "n", "ratio": 2}, Outer).ratio == 2.0
    assert problems({"name": "n", "ratio": "2"}) == ["ratio: expected a number, got a text (it is '2')"]


def test_an_error_carries_its_problems_and_its_source() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        decode({"name": "n", "typo": 1}, Outer, path="pipeline", source="p.yaml")
    assert refused.value.message.startswith("p.yaml: pipeline.typo: unknown key")
    assert refused.value.details["path"] == "pipeline.typo"


def test_secrets_show_themselves_only_to_the_store() -> None:
    outer = decode({"name": "n", "key": "sk-1"}, Outer)
    assert outer.key is not None
    assert outer.key.reveal() == "sk-1"
    assert "sk-1" not in repr(outer)
    assert to_json(outer) == b'{"name":"n","key":"***"}'
    assert from_stored_json(to_stored_json(outer), Outer) == outer
    assert problems({"name": "n", "key": {"sk": "sk-1"}}) == ["key: expected a text, got an object"]
    assert "sk-2" not in str(problems({"name": "n", "key": ["sk-2"]}))


def test_long_values_are_cut_in_messages() -> None:
    [problem] = problems({"name": "n", "inner": {"mode": "x" * 1000}})
    assert len(problem) < 200


def test_a_request_of_a_client_without_a_notion_of_absence_is_taken() -> None:
    value = {
        "pipeline": {
            "type": "t",
            "version": "",
            "steps": [{"id": "a", "kind": "llm", "mode": "", "depends_on": None, "prompt": None, "retry": None}],
        },
        "input": {"sources": None, "options": None},
        "mode": "",
        "parent_job_id": None,
        "from_step_id": "",
        "reuse_upstream": False,
    }
    request = decode(value, JobRequest)
    assert request.pipeline is not None
    assert request.pipeline.version == "1"
    assert request.input.sources == []


def test_the_definitions_of_jobs_come_back_from_the_store_as_they_were() -> None:
    step = {"id": "a", "kind": "llm", "provider_profile_id": "p", "provider_override": {"headers": {"X-Key": "s"}}}
    definition = decode({"type": "t", "steps": [step], "limits": {"max_total_tokens": 5}}, PipelineDef)
    assert from_stored_json(to_stored_json(definition), PipelineDef) == definition
    assert b'"X-Key":"***"' in to_json(definition)


def test_numbers_of_any_size_stay_exact() -> None:
    big = 123456789012345678901234567890
    assert msgspec.json.decode(to_json({"n": big})) == {"n": big}


def test_halves_of_surrogate_pairs_never_reach_the_wire() -> None:
    value = {"a\udcff": ["\ud800", Secret("s\udfff")], "b": 1}
    assert to_json(value) == '{"a\ufffd":["\ufffd","***"],"b":1}'.encode()
    assert to_stored_json(value) == '{"a\ufffd":["\ufffd","s\ufffd"],"b":1}'.encode()


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_numbers_that_json_does_not_know_are_refused(number: float) -> None:
    with pytest.raises(InvalidRequestError, match="timeout_s"):
        decode({"pipeline_type": "p", "timeout_s": number}, JobRequest)


def test_many_threads_may_decode_types_that_were_never_used_before() -> None:
    # In a process of its own: what goes wrong here is a segmentation fault, and only the first use can.
    code = """
import sys, threading
from pipeline_engine.decoding import from_stored_json
from pipeline_engine.models import Job, PipelineDef
sys.setswitchinterval(1e-6)
start = threading.Barrier(8)
def decode(number):
    start.wait()
    text = b'{"type":"t","version":"1","steps":[{"id":"a","kind":"llm"}]}'
    from_stored_json(text, PipelineDef)
threads = [threading.Thread(target=decode, args=(number,)) for number in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    for _ in range(5):
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
