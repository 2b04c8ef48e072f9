from __future__ import annotations

import os
from typing import Any

import pytest
import trio
from tests.worker_setting import children, opened_processes, program_with

from pipeline_engine import worker_processes
from pipeline_engine.worker_processes import WorkerError, WorkerStartError

FUEL = 20_000_000


def counting(number: int, *, fuel: int = FUEL) -> dict[str, Any]:
    source = f"{{% for i in range({number}) %}}{{{{ i % 10 }}}}{{% endfor %}}"
    return {"work": "render", "source": source, "context": {}, "fuel": fuel}


async def test_one_process_does_work_of_every_kind() -> None:
    before = children()
    async with opened_processes() as processes:
        assert await processes.ask(counting(3), purpose="the work") == {"value": "012"}
        (process,) = children() - before
        evaluation = {"work": "evaluate", "source": "1 + x", "context": {"x": 1}, "fuel": FUEL}
        assert await processes.ask(evaluation, purpose="the work") == {"value": 2}
        check = {"work": "validate", "value": 1, "schema": {"type": "string"}}
        assert await processes.ask(check, purpose="the work") == {"value": ["$: 1 is not of type 'string'"]}
        assert children() - before == {process}


async def test_each_request_brings_its_own_fuel() -> None:
    async with opened_processes() as processes:
        assert "error" in await processes.ask(counting(1000, fuel=100), purpose="the work")
        assert "value" in await processes.ask(counting(1000), purpose="the work")


async def test_a_value_may_be_nested_as_deep_as_anywhere() -> None:
    value: Any = "x"
    for _ in range(200):
        value = [value]
    async with opened_processes() as processes:
        check = {"work": "validate", "value": value, "schema": {"items": {"items": {"type": "string"}}}}
        [fault] = (await processes.ask(check, purpose="the work"))["value"]
    assert fault.startswith("$[0][0]: ")


async def test_an_answer_that_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_processes, "MAX_ANSWER_BYTES", 50_000)
    before = children()
    async with opened_processes() as processes:
        with pytest.raises(WorkerError, match="the work gives more than 50000 bytes"):
            await processes.ask(counting(90_000), purpose="the work")
        assert children() == before
        assert "value" in await processes.ask(counting(40_000), purpose="the work")


async def test_a_process_that_has_idled_long_enough_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_processes, "_PROGRAM", program_with("IDLE_SECONDS = 0.3"))
    before = children()
    async with opened_processes() as processes:
        await processes.ask(counting(3), purpose="the work")
        (first,) = children() - before
        await trio.to_thread.run_sync(os.waitid, os.P_PID, first, os.WEXITED | os.WNOWAIT)
        assert await processes.ask(counting(3), purpose="the work") == {"value": "012"}
        assert first not in children()


async def test_a_process_has_nothing_of_the_environment() -> None:
    before = children()
    async with opened_processes() as processes:
        await processes.ask(counting(3), purpose="the work")
        (process,) = children() - before
        assert await trio.Path(f"/proc/{process}/environ").read_bytes() == b""


async def test_a_process_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    async with opened_processes() as processes:
        with pytest.raises(WorkerStartError, match="cannot start a process for the work: No such file"):
            await processes.ask(counting(3), purpose="the work")
