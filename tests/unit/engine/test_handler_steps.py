"""Custom steps: what their handlers get, return, raise and change."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging

import pytest
import trio
from tests.engine_setting import (
    Json,
    llm,
    open_setting,
    texts,
)
from trio.testing import MockClock

from pipeline_engine.errors import ErrorCode
from pipeline_engine.models import JobStatus
from pipeline_engine.steps.handlers import HandlerItem, Handlers


async def test_handlers_give_texts_values_or_nothing(autojump_clock: MockClock) -> None:
    async def classify(item: HandlerItem) -> object:
        await trio.sleep(1)
        answers: dict[str, object] = {"text": "a text", "value": {"n": item.index}, "none": None, "odd": "\ud800"}
        return answers[item.text]

    def fail(item: HandlerItem) -> object:
        raise ValueError(f"cannot take {item.text}")

    handlers = Handlers()
    handlers.add("classify", classify)
    handlers.add("fail", fail)
    step = {"id": "c", "kind": "custom", "mode": "fanout", "config": {"handler": "classify"}, "export": True}
    async with open_setting(handlers=handlers) as setting:
        job = await setting.run([step], ["text", "value", "none", "odd"])
        assert texts(job) == ["a text", '{"n":1}', "?"]
        assert job.result is not None
        assert [item.data.get("json") for item in job.result.items] == [None, {"n": 1}, None]


@pytest.mark.parametrize(
    "exception",
    [SystemExit(3), ValueError("half a pair: \udcff"), KeyboardInterrupt(), asyncio.CancelledError()],
    ids=["exit", "surrogate", "interrupt", "cancelled"],
)
async def test_whatever_a_handler_raises_fails_its_step_alone(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, exception: BaseException
) -> None:
    # What pytest captures of the log goes from process to process, which half a pair cannot.
    caplog.set_level(logging.CRITICAL, "pipeline_engine.steps.handlers")

    async def bad(item: HandlerItem) -> None:
        raise exception

    handlers = Handlers()
    handlers.add("bad", bad)
    async with open_setting(handlers=handlers) as setting:
        for mode in ("single", "fanout"):
            step = {"id": "a", "kind": "custom", "mode": mode, "config": {"handler": "bad"}}
            job = await setting.run([step], ["x", "y"])
            assert job.status is JobStatus.FAILED
            assert job.error is not None
            assert job.error.code == ErrorCode.TOOL_FAILED
            assert type(exception).__name__ in job.error.message
        assert (await setting.run([llm("b")])).status is JobStatus.SUCCEEDED


@pytest.mark.parametrize("plain", [False, True])
async def test_what_a_handler_changes_of_its_item_is_its_own(plain: bool) -> None:
    """In real time: a plain handler runs in a thread."""

    def change(item: HandlerItem) -> object:
        item.json["seen"] = item.index
        item.options["seen"] = True
        item.options["deep"]["list"].append(1)
        item.sources[0]["metadata"]["seen"] = True
        item.sources.append({})
        assert json.loads(json.dumps(dataclasses.asdict(item)))["sources"] == item.sources
        return {"json": item.json, "options": item.options, "sources": item.sources}

    async def change_async(item: HandlerItem) -> object:
        return change(item)

    handlers = Handlers()
    handlers.add("change", change if plain else change_async)
    steps = [
        {"id": "p", "kind": "map", "config": {"map": "parse", "format": "json"}, "export": True},
        {
            "id": "c",
            "kind": "custom",
            "mode": "fanout",
            "depends_on": ["p"],
            "config": {"handler": "change", "over": "p"},
            "export": True,
        },
        {
            "id": "t",
            "kind": "map",
            "depends_on": ["p", "c"],
            "config": {
                "map": "template",
                "template": "{{ previous.p[0].json }} {{ options }} {{ sources[0].metadata }}",
            },
            "export": True,
        },
    ]
    given = {"kind": "note", "label": "s", "content": '[{"a": 1}, {"a": 2}]', "metadata": {"m": 1}}
    options: Json = {"deep": {"list": []}}
    async with open_setting(handlers=handlers) as setting:
        job = await setting.run(steps, [given], options=options)
        assert job.result is not None
        first, *changed, last = job.result.items
        assert first.data["json"] == [{"a": 1}, {"a": 2}]
        assert [item.data["json"]["json"] for item in changed] == [{"a": 1, "seen": 0}, {"a": 2, "seen": 1}]
        for item in changed:
            assert item.data["json"]["options"] == {"deep": {"list": [1]}, "seen": True}
            assert [one.get("metadata") for one in item.data["json"]["sources"]] == [{"m": 1, "seen": True}, None]
        assert last.data["text"] == '[{"a":1},{"a":2}] {"deep":{"list":[]}} {"m":1}'
        assert job.input == (await setting.engine.get_job(job.id)).input
        assert job.input is not None
        assert (job.input.options, job.input.sources[0].metadata) == (options, {"m": 1})


def nested(depth: int) -> object:
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (nested(250), "is nested deeper than 200 levels"),
        ({1: "a", "1": "b"}, "the key '1' stands twice"),
        ({(1, 2): 3}, "keys must be str"),
        ([float("nan")], "cannot be written as JSON"),
        ({1, 2}, "cannot be written as JSON"),
    ],
    ids=["deep", "twice", "tuple", "nan", "set"],
)
async def test_a_handler_that_returns_no_json_is_named(autojump_clock: MockClock, value: object, words: str) -> None:
    async def answer(item: HandlerItem) -> object:
        return value

    handlers = Handlers()
    handlers.add("my-handler", answer)
    async with open_setting(handlers=handlers) as setting:
        job = await setting.run([{"id": "c", "kind": "custom", "config": {"handler": "my-handler"}}], ["x"])
        assert job.error is not None
        assert job.error.code == "tool_failed"
        assert job.error.message.startswith(
            f"the handler 'my-handler' returned a {type(value).__name__}, which is neither"
        )
        assert words in job.error.message
