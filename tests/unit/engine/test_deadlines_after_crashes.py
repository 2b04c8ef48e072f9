"""Time limits of jobs that a restart of the daemon interrupts, and clocks that jump meanwhile. Virtual time."""

from __future__ import annotations

import time
from typing import Any

import pytest
import trio
from tests.crash_setting import finish, run_until_crash
from tests.engine_setting import Script, ScriptedRegistry, llm, open_setting
from trio.testing import MockClock

from pipeline_engine.store.memory import MemoryStore

YEAR_S = 365 * 24 * 3600


async def test_time_limits_go_on_by_the_time_that_the_job_ran(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    registry = ScriptedRegistry({"m": [Script(first=1)], "slow": [Script(first=1000)]})
    steps = [llm(f"s{n}", "m", depends_on=[f"s{n - 1}"] if n else []) for n in range(10)]
    job_id = await run_until_crash(store, registry, steps, [], after=4.5, timeout_s=7)
    await trio.sleep(1000)  # the daemon is away: that does not count
    async with open_setting(store=store, registry=registry) as setting:
        began = trio.current_time()
        job = await finish(setting, job_id)
        assert job.error is not None
        assert job.error.code == "timeout"
        # What ran after the last step began is known by wall time only, which virtual time does not move.
        assert 2 <= trio.current_time() - began <= 3.1


async def test_a_wall_clock_that_is_set_costs_a_job_none_of_its_time(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    registry = ScriptedRegistry({"m": [Script(tokens=["t"] * 1000, delay=1)]})
    with trio.CancelScope() as crash:
        async with open_setting(store=store, registry=registry) as setting:
            job = await setting.submit([llm("a", "m")], timeout_s=100)
            await trio.sleep(30)
            for years in (10, -10):  # forward, and then back beyond where it was
                real, shift = time.time, years * YEAR_S
                monkeypatch.setattr(time, "time", lambda real=real, shift=shift: real() + shift)
                monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))
                await trio.sleep(20)
            crash.cancel()
            await trio.sleep_forever()
    async with open_setting(store=store, registry=registry) as setting:
        began = trio.current_time()
        done = await finish(setting, job.id)
        assert done.error is not None
        assert done.error.code == "timeout"
        assert 29 <= trio.current_time() - began <= 51  # of 100 seconds it had used 50 at the second leap, or 70


async def test_nothing_ends_before_it_began_when_the_wall_clock_is_set_back(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = ScriptedRegistry({"m": [Script(first=10)]})
    async with open_setting(registry=registry) as setting:
        job = await setting.submit([llm("a", "m")])
        await trio.sleep(5)
        back = time.time() - YEAR_S
        monkeypatch.setattr(time, "time_ns", lambda: int(back * 1e9))
        done = await finish(setting, job.id)
        [step] = done.step_executions or []
        assert str(step.started_at) <= str(step.finished_at)
        assert done.created_at <= str(done.started_at) <= str(done.finished_at)
        assert done.updated_at == done.finished_at


@pytest.mark.parametrize("of_step", [False, True])
async def test_a_crash_gives_a_silent_job_at_most_a_tenth_of_its_time_back(
    autojump_clock: MockClock, of_step: bool
) -> None:
    store = MemoryStore()
    registry = ScriptedRegistry({"slow": [Script(first=1000)]})
    limit: dict[str, Any] = {"timeout_s": 100}
    steps = [llm("a", "slow", **(limit if of_step else {}))]
    job_id = await run_until_crash(store, registry, steps, [], after=75, **({} if of_step else limit))
    async with open_setting(store=store, registry=registry) as setting:
        began = trio.current_time()
        job = await finish(setting, job_id)
        assert job.error is not None
        assert job.error.code == "timeout"
        assert 25 <= trio.current_time() - began <= 35.1


async def test_only_a_job_with_a_deadline_is_noted_while_it_is_silent(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"slow": [Script(first=1000)]})
    async with open_setting(registry=registry) as setting:
        for timeout_s, notes in ((None, 0), (5000, 1), (4, 2)):
            job = await setting.submit([llm("a", "slow")], timeout_s=timeout_s)
            await trio.sleep(0.5)
            before = setting.writer.commits
            await trio.sleep(2.1 if timeout_s == 4 else 600)
            assert setting.writer.commits - before == notes
            await setting.engine.cancel(job.id)
