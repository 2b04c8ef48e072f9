from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from tests.worker_setting import children, new_child, program_with

from pipeline_engine.errors import TemplateError
from pipeline_engine.renderer import Renderer
from pipeline_engine.templates import Templates
from pipeline_engine.worker_processes import open_worker_processes

COUNTED = "{% for i in range(90000) %}{{ i % 10 }}{% endfor %}"
ENDLESS = "{% set s = [1] %}" + "{% set s = s + s %}" * 60 + "{{ s | join }}"


@pytest.fixture
def context() -> dict[str, Any]:
    return {"options": {"name": "Ada \ud800 ü"}, "sources": [{"content": "x"}], "previous": {"a": [{"text": "t"}]}}


@asynccontextmanager
async def renderer() -> AsyncIterator[Renderer]:
    before = children()
    async with open_worker_processes() as processes:
        yield Renderer(Templates(), processes=processes)
    assert children() <= before


async def test_small_work_needs_no_process(context: dict[str, Any]) -> None:
    before = children()
    async with renderer() as opened:
        assert await opened.render("{{ sources[0].content }}", context) == "x"
        assert await opened.evaluate("sources | length", context) == 1
        assert children() == before


async def test_large_work_runs_in_a_process_that_serves_again(context: dict[str, Any]) -> None:
    before = children()
    async with renderer() as opened:
        assert len(await opened.render(COUNTED, context)) == 90_000
        (process,) = children() - before
        text = "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(previous.a[0].text) }}"
        assert await opened.render(text, context) == "<t>"
        assert await opened.evaluate("range(100) | list", context) == list(range(100))
        assert children() - before == {process}


async def test_a_process_renders_and_fails_as_the_event_loop_does(context: dict[str, Any]) -> None:
    macro = "{% macro m(x) %}{{ x }}{% endmacro %}"
    async with renderer() as opened:
        for source in ("{{ options.name }}", "{{ options }}", "{{ sources | tojson(indent=2) }}"):
            assert await opened.render(macro + source, context) == await opened.render(source, context)
        with pytest.raises(TemplateError) as small:
            await opened.render("\n{{ options.nmae }}", context)
        with pytest.raises(TemplateError) as large:
            await opened.render(macro + "\n{{ options.nmae }}", context)
        assert large.value.message == small.value.message
        assert large.value.details == small.value.details == {"line": 2}


@pytest.mark.parametrize(
    "body",
    ["[ns.s]", "[ns.s] | batch(1) | list", "{'x': ns.s}"],
)
async def test_values_nested_without_end_fail_the_rendering_and_nothing_else(body: str) -> None:
    deep = (
        "{% set ns = namespace(s=1) %}{% for i in range(90000) %}{% set ns.s = BODY %}{% endfor %}{{ ns.s | tojson }}"
    )
    async with renderer() as opened:
        with pytest.raises(TemplateError, match="nested"):
            await opened.render(deep.replace("BODY", body), {})
        assert len(await opened.render(COUNTED, {})) == 90_000


async def test_a_rendering_that_never_ends_leaves_the_event_loop_free_and_dies_of_a_cancellation() -> None:
    before = children()
    async with renderer() as opened:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.render, ENDLESS, {})
            await new_child(before)
            # Another one has a process of its own; it would not get the interpreter if the first one held it.
            assert len(await opened.render(COUNTED, {})) == 90_000
            nursery.cancel_scope.cancel()
        assert len(children() - before) == 1


async def test_a_process_ends_itself_when_its_processor_time_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline_engine.worker_processes._PROGRAM", program_with("CPU_SECONDS = 1"))
    async with renderer() as opened:
        with pytest.raises(TemplateError, match="more processor time"):
            await opened.render(ENDLESS, {})


async def test_a_process_that_is_killed_fails_its_rendering_with_a_message() -> None:
    before = children()
    async with renderer() as opened, trio.open_nursery() as nursery:

        async def render() -> None:
            with pytest.raises(TemplateError, match="more memory"):
                await opened.render(ENDLESS, {})

        nursery.start_soon(render)
        os.kill(await new_child(before), signal.SIGKILL)


async def test_a_process_that_was_killed_while_it_idled_is_replaced() -> None:
    before = children()
    async with renderer() as opened:
        assert len(await opened.render(COUNTED, {})) == 90_000
        (process,) = children() - before
        os.kill(process, signal.SIGKILL)
        await trio.to_thread.run_sync(os.waitid, os.P_PID, process, os.WEXITED | os.WNOWAIT)
        assert len(await opened.render(COUNTED, {})) == 90_000
