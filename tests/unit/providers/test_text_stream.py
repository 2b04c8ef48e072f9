"""Answers put together from pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.providers.base import Chunk
from pipeline_engine.providers.text_stream import AnswerText, ToolCalls, finish_reason_of

OSLO = {"id": "c1", "name": "get_weather", "arguments": {"city": "Oslo"}}
CET = {"id": "c2", "name": "get_time", "arguments": {"tz": "CET"}}


def piece(arguments: Any = None, *, index: Any = None, call_id: str | None = None, name: str | None = None) -> Any:
    delta: dict[str, Any] = {"function": {"name": name, "arguments": arguments}}
    if index is not None:
        delta["index"] = index
    return {**delta, "id": call_id}


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param(
            [
                piece("", index=0, call_id="c1", name="get_weather"),
                piece("", index=1, call_id="c2", name="get_time"),
                piece('{"tz":', index=1),
                piece('{"city":"Oslo"}', index=0),
                piece('"CET"}', index=1),
            ],
            id="interleaved",
        ),
        pytest.param(
            [
                piece('{"ci', call_id="c1", name="get_weather"),
                piece('ty":"Oslo"}'),
                piece('{"tz":', call_id="c2", name="get_time"),
                piece('"CET"}'),
            ],
            id="no index",
        ),
        pytest.param(
            [
                piece('{"city":"Oslo"}', index=0, call_id="c1", name="get_weather"),
                piece('{"tz":"CET"}', index=0, call_id="c2", name="get_time"),
            ],
            id="one index for both",
        ),
        pytest.param(
            [
                piece('{"city":', index=0, call_id="c1", name="get_weather"),
                piece('"Oslo"}', index=0, call_id="c1", name="get_weather"),
                piece('{"tz":"CET"}', index=1, call_id="c2", name="get_time"),
            ],
            id="the id in every piece",
        ),
        pytest.param(
            [
                piece({"city": "Oslo"}, call_id="c1", name="get_weather"),
                piece({"tz": "CET"}, call_id="c2", name="get_time"),
            ],
            id="whole objects",
        ),
        pytest.param(
            [
                piece("", index=0, call_id="c1"),
                piece('{"city":"Oslo"}', index=0, name="get_weather"),
                piece('{"tz":"CET"}', index=1, call_id="c2"),
                piece(index=1, call_id="c2", name="get_time"),
            ],
            id="the name after the id",
        ),
        pytest.param(
            [
                piece('{"city":', index=0, call_id="c1", name="get_weather"),
                piece('"Oslo"}', index=0, call_id="x1"),
                piece('{"tz":', index=1, call_id="c2", name="get_time"),
                piece('"CET"}', index=1, call_id="x2"),
            ],
            id="another id in every piece",
        ),
        pytest.param(
            [
                piece('{"city":"Oslo"}', index=0, call_id="c1", name="get_weather"),
                piece("", index=0, call_id="c1", name="get_weather"),
                piece('{"tz":"CET"}', index=0, call_id="c2", name="get_time"),
                piece("", call_id="c2", name="get_time"),
                piece(" ", index=1, call_id="c2"),
            ],
            id="nothing more",
        ),
    ],
)
def test_tool_calls_come_together_whatever_their_index(pieces: list[Any]) -> None:
    calls = ToolCalls()
    for delta in pieces:
        calls.feed(delta)
    assert calls.finish() == [OSLO, CET]


def test_tool_calls_without_ids_are_told_apart_by_their_names() -> None:
    calls = ToolCalls()
    for delta in (piece('{"a":1}', name="f"), piece('{"b":', name="g"), piece("2}", name="g")):
        calls.feed(delta)
    assert calls.finish() == [
        {"id": "call_0", "name": "f", "arguments": {"a": 1}},
        {"id": "call_1", "name": "g", "arguments": {"b": 2}},
    ]


F, G = {"id": "0", "name": "f", "arguments": {"a": 1}}, {"id": "0", "name": "g", "arguments": {"b": 1}}


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [
        ([piece('{"a":1}', index=0, name="f"), piece('{"b":1}', index=1, name="g")], [F, G]),
        ([piece('{"a":1}', index=0, name="f"), piece('{"b":1}', index=0, name="g")], [F, G]),
        ([piece('{"a":1}', index=0, name="f"), piece('{"a":1}', index=1, name="f")], [F, F]),
        ([piece('{"a":1}', name="f"), piece('{"b":1}', name="g")], [F, G]),
        ([piece(index=0, name="f"), piece(index=1, name="g")], [{**F, "arguments": {}}, {**G, "arguments": {}}]),
        (
            [
                piece('{"a":', index=0, name="f"),
                piece('{"b":', index=1, name="g"),
                piece("1}", index=0),
                piece("1}", index=1, name="g"),
            ],
            [F, G],
        ),
        ([piece('{"a":', index=0, name="f"), piece("1}", index=1, name="f")], [F]),
    ],
)
def test_one_id_may_stand_for_several_calls(pieces: list[Any], whole: list[Any]) -> None:
    calls = ToolCalls()
    for delta in pieces:
        calls.feed({**delta, "id": "0"})
    assert calls.finish() == whole


def test_arguments_that_are_no_json_stay_text_and_none_are_an_empty_object() -> None:
    calls = ToolCalls()
    for delta in (piece("{oops", call_id="a", name="f"), piece("", call_id="b", name="g"), "nonsense", None):
        calls.feed(delta)
    assert [call["arguments"] for call in calls.finish()] == ["{oops", {}]


@pytest.mark.parametrize(("depth", "kept"), [(200, True), (201, False), (900, False), (100_000, False)])
def test_arguments_that_are_nested_too_deeply_stay_text(depth: int, *, kept: bool) -> None:
    calls = ToolCalls()
    text = "[" * depth + "]" * depth
    calls.feed(piece(text, call_id="a", name="f"))
    [call] = calls.finish()
    assert call["arguments"] == (json.loads(text) if kept else text)


def test_an_object_that_cannot_be_written_down_breaks_the_protocol() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ProviderError, match="nested too deeply"):
        ToolCalls().feed(piece(deep, call_id="a", name="f"))


def test_half_a_surrogate_pair_in_arguments_can_be_stored() -> None:
    calls = ToolCalls()
    calls.feed(piece('{"\\ud83d":["\\udc81"]}', call_id="a", name="f"))
    assert calls.finish()[0]["arguments"] == {"\ufffd": ["\ufffd"]}


def test_text_and_reasoning_are_separate_channels() -> None:
    text = AnswerText()
    chunks = [*text.reasoning("Hmm"), *text.text(""), *text.text(None), *text.text("Yes\ud83d"), *text.flush()]
    assert chunks == [Chunk("Hmm", "reasoning"), Chunk("Yes"), Chunk("\ufffd")]
    text.check_not_empty(finish_reason="stop", address="a")


def test_white_space_around_a_text_stays() -> None:
    text = AnswerText()
    assert [*text.text(" \n"), *text.text("x"), *text.text("\n")] == [Chunk(" \n"), Chunk("x"), Chunk("\n")]
    text.check_not_empty(finish_reason="stop", address="a")


@pytest.mark.parametrize(
    ("reasoning", "finish_reason", "code", "retryable"),
    [
        ("", "stop", ErrorCode.PROVIDER_EMPTY, True),
        ("thought", "stop", ErrorCode.PROVIDER_EMPTY, True),
        ("thought", "length", ErrorCode.OUTPUT_TRUNCATED, False),
        ("", "length", ErrorCode.OUTPUT_TRUNCATED, False),
    ],
)
@pytest.mark.parametrize("content", ["", " ", "\n\t\u3000"])
def test_an_answer_without_text_is_an_error(
    content: str, reasoning: str, finish_reason: str, code: ErrorCode, retryable: bool
) -> None:
    text = AnswerText()
    text.reasoning(reasoning)
    text.text(content)
    with pytest.raises(ProviderError) as caught:
        text.check_not_empty(finish_reason=finish_reason, address="a")
    assert (caught.value.code, caught.value.retryable) == (code, retryable)


@pytest.mark.parametrize(
    ("value", "reason"),
    [("stop", "stop"), ("max_tokens", "length"), ("length", "length"), (None, None), ("", None), (3, None)],
)
def test_finish_reasons(value: object, reason: str | None) -> None:
    assert finish_reason_of(value) == reason
