"""Handlers: how they are found, and what becomes of what they raise."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from pipeline_engine.errors import ErrorCode, StepError
from pipeline_engine.steps.handler_threads import HandlerThreads
from pipeline_engine.steps.handlers import HandlerItem, Handlers, call_handler


class Panic(BaseException):
    """As PyO3 raises it for a panic in Rust."""


LETHAL = [asyncio.CancelledError(), KeyboardInterrupt(), Panic("index out of bounds"), GeneratorExit(), SystemExit(3)]

Load = Callable[[str], Handlers]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Handlers with one, `h`: the function `run` of a module with this text."""
    monkeypatch.syspath_prepend(tmp_path)

    def load(text: str) -> Handlers:
        name = f"handlers_of_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        return Handlers({"h": f"{name}:run"})

    return load


def item(job_id: str = "job_1") -> HandlerItem:
    return HandlerItem(
        job_id=job_id,
        step_id="s",
        shard_key=None,
        index=0,
        text="a text",
        json=None,
        embedding=None,
        prompt="",
        label="",
        sources=[],
        options={},
    )


async def call(handlers: Handlers, job_id: str = "job_1") -> Any:
    begin = trio.lowlevel.checkpoint
    return await call_handler(handlers.get("h"), item(job_id), threads=HandlerThreads(threads=1), begin=begin)


def added(function: Callable[[HandlerItem], Any]) -> Handlers:
    handlers = Handlers()
    handlers.add("h", function)
    return handlers


@pytest.mark.parametrize("exception", LETHAL, ids=lambda exception: type(exception).__name__)
@pytest.mark.parametrize("is_async", [False, True])
async def test_whatever_is_raised_is_the_failure_of_the_handler(exception: BaseException, is_async: bool) -> None:
    def fail(item: HandlerItem) -> None:
        raise exception

    async def fail_async(item: HandlerItem) -> None:
        raise exception

    with pytest.raises(StepError, match=f"the handler raised {type(exception).__name__}") as caught:
        await call(added(fail_async if is_async else fail))
    assert caught.value.code is ErrorCode.TOOL_FAILED


@pytest.mark.parametrize("name", ["asyncio.CancelledError", "KeyboardInterrupt", "Panic", "SystemExit"])
def test_whatever_an_import_raises_is_a_missing_handler(load: Load, name: str) -> None:
    handlers = load(f"import asyncio\nclass Panic(BaseException): pass\nraise {name}('no licence')\n")
    with pytest.raises(StepError, match=rf"{name.rpartition('.')[2]}: no licence \(handlers_of_\w+\.py:3\)$") as caught:
        handlers.get("h")
    assert caught.value.code is ErrorCode.MISSING_DEPENDENCY


@pytest.mark.parametrize("text", [Panic("within"), None])
async def test_an_exception_whose_text_cannot_be_had_is_told_all_the_same(text: Panic | None) -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            if text is None:
                return None  # type: ignore[return-value]  # noqa: PLE0307 - as careless classes do
            raise text

    def fail(_: HandlerItem) -> None:
        raise MuteError

    with pytest.raises(StepError, match=r"^the handler raised MuteError: <its text cannot be had: \w+>") as caught:
        await call(added(fail))
    assert caught.value.code is ErrorCode.TOOL_FAILED


async def test_a_cancellation_passes_alone_and_out_of_groups() -> None:
    async def wait(item: HandlerItem) -> None:
        await trio.sleep_forever()

    async def panic_meanwhile(item: HandlerItem) -> None:
        async def panic() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise Panic

        async with trio.open_nursery() as nursery:
            nursery.start_soon(panic)
            nursery.start_soon(trio.sleep_forever)

    for function in (wait, panic_meanwhile):
        with trio.CancelScope() as scope:
            scope.cancel()
            await call(added(function))
        assert scope.cancelled_caught


@pytest.mark.parametrize("exception", [RuntimeError("fetch failed"), StepError(ErrorCode.TOOL_FAILED, "no"), Panic()])
async def test_a_cancellation_that_becomes_an_exception_is_a_cancellation(
    caplog: pytest.LogCaptureFixture, exception: BaseException
) -> None:
    async def fail(item: HandlerItem) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise exception from None

    with trio.CancelScope() as scope:
        scope.cancel()
        await call(added(fail))
    assert scope.cancelled_caught
    assert not caplog.records


async def test_the_place_is_the_last_one_in_the_package_of_the_handler(load: Load) -> None:
    handlers = load("import json\ndef run(item):\n    return helper(item)\ndef helper(item):\n    json.loads('{')\n")
    with pytest.raises(StepError, match=r"raised JSONDecodeError: .* \(handlers_of_\w+\.py:5\)$"):
        await call(handlers)


async def test_the_traceback_is_in_the_log_once_for_each_job(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    handlers = load("def run(item):\n    return {}['nokey']\n")
    with caplog.at_level(logging.ERROR):
        for job_id in ("job_1", "job_2", "job_1"):
            with pytest.raises(StepError, match="KeyError: 'nokey'"):
                await call(handlers, job_id)
    assert [record.getMessage() for record in caplog.records] == [
        "a handler failed in job job_1, step s",
        "a handler failed in job job_2, step s",
    ]
    assert "return {}['nokey']" in caplog.text


@pytest.mark.parametrize("missing", ["no_such_module", "no_such_package.inner"])
def test_a_module_that_is_not_there_is_told_with_where_it_is_looked_for(load: Load, missing: str) -> None:
    for handlers in (Handlers({"h": f"{missing}:run"}), load(f"import {missing}\n")):
        with pytest.raises(StepError, match=r"No module named 'no_such_\w+'.*; the daemon imports .* PYTHONPATH$"):
            handlers.get("h")
