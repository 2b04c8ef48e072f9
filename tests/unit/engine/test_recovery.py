"""What a crash leaves, and how the next start goes on with it. Virtual time, a store that outlives the engine."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from typing import Any

import pytest
import trio
from tests.crash_setting import finish, run_until_crash
from tests.engine_setting import Script, ScriptedRegistry, llm, open_setting, statuses, texts
from trio.testing import MockClock

from pipeline_engine.engine import EngineLimits
from pipeline_engine.errors import StoreError
from pipeline_engine.events import Event
from pipeline_engine.job_runner import Stop
from pipeline_engine.models import JobId, JobStatus
from pipeline_engine.steps.context import JobState
from pipeline_engine.steps.handler_threads import THREADS
from pipeline_engine.steps.handlers import HandlerItem, Handlers
from pipeline_engine.store.memory import MemoryStore
from pipeline_engine.store.writer import Write


async def test_finished_steps_and_items_are_not_run_again(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    registry = ScriptedRegistry({"echo": [Script(echo=True, first=1)], "one": [Script(tokens=["done"])]})
    steps = [
        llm("a", "one"),
        llm("f", "echo", mode="fanout", max_concurrency=2, depends_on=["a"]),
        llm("z", "echo", depends_on=["a", "f"], prompt={"user": "{{ previous.a[0].text }}{{ previous.f | length }}"}),
    ]
    sources = [f"s{n}" for n in range(6)]
    job_id = await run_until_crash(store, registry, steps, sources, after=2.5)
    before = [event.line for event in store.read_events(job_id)]
    assert registry.prompts.count("s0") == 1
    async with open_setting(store=store, registry=registry) as setting:
        job = await finish(setting, job_id)
        assert job.status is JobStatus.SUCCEEDED
        assert job.restarts == 1
        assert texts(job, "f") == sources
        assert texts(job, "z") == ["done6"]
        assert [event.line for event in store.read_events(job_id)][: len(before)] == before
        counts = [registry.prompts.count(text) for text in sources]
        assert counts == [1, 1, 1, 1, 2, 2]
        events = setting.stored_events(job_id)
        [resumed] = [event["data"] for event in events if event["event"] == "job_resumed"]
        assert resumed["restarts"] == 1
        assert {step["step_id"]: step["status"] for step in resumed["steps"]} == {
            "a": "success",
            "f": "running",
            "z": "pending",
        }
        attempts = [
            (e["data"].get("shard_key"), e["data"]["attempt"])
            for e in events
            if e["event"] == "item_started" and e["data"]["step_id"] == "f"
        ]
        assert attempts == [
            ("f-0", 1),
            ("f-1", 1),
            ("f-2", 1),
            ("f-3", 1),
            ("f-4", 1),
            ("f-5", 1),
            ("f-4", 2),
            ("f-5", 2),
        ]


async def test_a_restart_costs_no_attempt(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    registry = ScriptedRegistry({"m": [Script(first=10)]})
    job_id = await run_until_crash(store, registry, [llm("a", "m", retry={"max_attempts": 1})], ["x"], after=5)
    async with open_setting(store=store, registry=registry) as setting:
        assert (await finish(setting, job_id)).status is JobStatus.SUCCEEDED


async def test_queued_jobs_stay_queued_in_order_behind_what_ran(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    registry = ScriptedRegistry({"m": [Script(echo=True, first=10)]})
    limits = EngineLimits(max_running_jobs=1)
    ids: list[JobId] = []
    with trio.CancelScope() as scope:
        async with open_setting(store=store, registry=registry, limits=limits) as setting:
            for name, priority in (("first", 0), ("low", 0), ("high", 9)):
                job = await setting.submit([llm("a", "m")], [name], priority=priority)
                ids.append(job.id)
            await trio.sleep(5)
            scope.cancel()
            await trio.sleep_forever()
    async with open_setting(store=store, registry=registry, limits=limits) as setting:
        for job_id in ids:
            assert (await finish(setting, job_id)).status is JobStatus.SUCCEEDED
    assert registry.prompts == ["first", "first", "high", "low"]


async def test_a_cancellation_that_was_under_way_is_carried_out(autojump_clock: MockClock) -> None:
    store = MemoryStore()

    async def stubborn(item: HandlerItem) -> str:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(5)
        return ""

    handlers = Handlers()
    handlers.add("stubborn", stubborn)
    step = {"id": "c", "kind": "custom", "config": {"handler": "stubborn"}}
    with trio.CancelScope() as crash:
        async with open_setting(store=store, handlers=handlers) as setting, trio.open_nursery() as nursery:
            job = await setting.submit([step])
            await trio.sleep(1)
            nursery.start_soon(setting.engine.cancel, job.id, "enough")
            await trio.sleep(1)
            # The engine must not get to write the end: as after kill -9.
            setting.writer._access.store = MemoryStore()
            crash.cancel()
            await trio.sleep_forever()
    head = store.head(job.id)
    assert head is not None
    assert not head.is_final
    async with open_setting(store=store, handlers=handlers) as setting:
        job = await finish(setting, job.id)
        assert job.status is JobStatus.CANCELLED
        assert job.error is not None
        assert job.error.message == "enough"
        assert statuses(job) == {"c": "cancelled"}


async def test_what_must_not_run_twice_fails_the_job_instead(autojump_clock: MockClock) -> None:
    calls: list[str] = []

    async def pay(item: HandlerItem) -> str:
        calls.append(item.text)
        await trio.sleep(10)
        return "paid"

    handlers = Handlers()
    handlers.add("pay", pay)
    store = MemoryStore()
    step = {"id": "pay", "kind": "custom", "config": {"handler": "pay", "idempotent": False}}
    with trio.CancelScope() as crash:
        async with open_setting(store=store, handlers=handlers) as setting:
            job = await setting.submit([step], ["x"])
            await trio.sleep(5)
            crash.cancel()
            await trio.sleep_forever()
    async with open_setting(store=store, handlers=handlers) as setting:
        job = await finish(setting, job.id)
        assert job.error is not None
        assert (job.error.code, job.error.details["step_id"]) == ("interrupted", "pay")
    assert calls == ["x"]


@pytest.mark.parametrize("idempotent", [True, False])
async def test_items_that_were_left_out_are_not_tried_again(autojump_clock: MockClock, idempotent: bool) -> None:
    calls: list[str] = []

    async def judge(item: HandlerItem) -> str | None:
        calls.append(item.text)
        await trio.sleep(1)
        if item.text == "bad":
            raise ValueError("no judgement")
        return None if item.text == "dull" else item.text

    handlers = Handlers()
    handlers.add("judge", judge)
    store = MemoryStore()
    config = {"handler": "judge", "idempotent": idempotent}
    fanout = {"mode": "fanout", "max_concurrency": 1, "on_item_error": "skip"}
    step = {"id": "j", "kind": "custom", "config": config, "export": True, **fanout}
    sources = ["a", "dull", "bad", "b", "c"]
    job_id = await run_until_crash(store, ScriptedRegistry(), [step], sources, after=3.5, handlers=handlers)
    if not idempotent:  # the crash comes just before b was to begin: nothing is under way
        assert store._jobs[job_id].events.pop().name == "item_started"
    async with open_setting(store=store, handlers=handlers) as setting:
        job = await finish(setting, job_id)
        assert job.status is JobStatus.SUCCEEDED
        assert texts(job) == ["a", "b", "c"]
        assert calls == ["a", "dull", "bad", "b", "b", "c"]
        [execution] = job.step_executions or []
        assert [error.details["shard_key"] for error in execution.errors] == ["j-2"]
        assert "no judgement" in execution.errors[0].message
        assert (execution.items_done, execution.items_total) == (5, 5)
        assert len(await setting.engine.checkpoints(job_id)) == 3


async def test_a_job_that_takes_the_daemon_down_is_given_up_in_the_end(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    registry = ScriptedRegistry({"m": [Script(first=1000)]})
    limits = EngineLimits(max_restarts=3)
    job_id = await run_until_crash(store, registry, [llm("a", "m")], [], after=1)
    for _ in range(3):
        with trio.CancelScope() as crash:
            async with open_setting(store=store, registry=registry, limits=limits):
                await trio.sleep(1)
                crash.cancel()
                await trio.sleep_forever()
    async with open_setting(store=store, registry=registry, limits=limits) as setting:
        job = await finish(setting, job_id)
        assert job.error is not None
        assert job.error.code == "interrupted"
        assert job.restarts == 3


async def test_a_failure_that_was_stored_is_not_tried_again(autojump_clock: MockClock) -> None:
    """The crash came between the step's end and the job's."""
    store = MemoryStore()
    from pipeline_engine.errors import ErrorCode, StepError

    registry = ScriptedRegistry({"bad": [Script(tokens=(), error=StepError(ErrorCode.PROVIDER_ERROR, "bad"))]})
    async with open_setting(store=store, registry=registry) as setting:
        job = await setting.run([llm("a", "bad")])
    stored = store._jobs[job.id]
    cut = next(index for index, event in enumerate(stored.events) if event.name == "job_status" and index > 3)
    del stored.events[cut:]
    stored.status, stored.finished_at = JobStatus.RUNNING, None
    async with open_setting(store=store, registry=registry) as setting:
        again = await finish(setting, job.id)
        assert again.error == job.error
    assert len(registry.calls) == 1


@pytest.mark.parametrize("seed", range(20))
async def test_crashes_at_any_moment_lose_and_repeat_nothing(autojump_clock: MockClock, seed: int) -> None:
    rng = random.Random(seed)
    store = MemoryStore()
    registry = ScriptedRegistry({"echo": [Script(echo=True, first=0.7, delay=0.2)]})
    steps = [
        llm("a", "echo"),
        llm("f", "echo", mode="fanout", max_concurrency=3, depends_on=["a"]),
        llm("p", "echo", mode="per_item", depends_on=["f"], prompt={"user": "{{ item.text }}!"}),
    ]
    sources = [f"s{n}" for n in range(7)]
    job_id = await run_until_crash(store, registry, steps, sources, after=rng.uniform(0, 4))
    for _ in range(5):
        prefix = [event.line for event in store.read_events(job_id)]
        with trio.CancelScope() as crash:
            async with open_setting(store=store, registry=registry) as setting:
                crash.deadline = trio.current_time() + rng.uniform(0, 4)
                await setting.engine.wait(job_id)
        assert [event.line for event in store.read_events(job_id)][: len(prefix)] == prefix
    async with open_setting(store=store, registry=registry) as setting:
        job = await finish(setting, job_id)
        assert job.status is JobStatus.SUCCEEDED
        assert texts(job, "p") == [f"s{n}!" for n in range(7)]
        completed = [
            (e["data"]["step_id"], e["data"].get("shard_key"))
            for e in setting.stored_events(job_id)
            if e["event"] == "item_completed"
        ]
        assert len(completed) == len(set(completed)) == 15


async def test_a_restart_neither_forgets_nor_invents_what_a_job_has_spent(autojump_clock: MockClock) -> None:
    async def run(item: HandlerItem) -> str:
        return item.text

    handlers = Handlers()
    handlers.add("run", run)
    store = MemoryStore()
    registry = ScriptedRegistry({"slow": [Script(first=1)]})
    steps = [
        {"id": "c", "kind": "custom", "mode": "fanout", "config": {"handler": "run"}},
        llm("a", "slow", mode="per_item", max_concurrency=1, depends_on=["c"]),
    ]
    # Five calls are made, and the one that the crash cuts short.
    limits = {"max_provider_calls": 6}
    with trio.CancelScope() as scope:
        async with open_setting(store=store, registry=registry, handlers=handlers) as setting:
            job_id = (await setting.submit(steps, list("12345"), limits=limits)).id
            await trio.sleep(3.5)
            scope.cancel()
            await trio.sleep_forever()
    async with open_setting(store=store, registry=registry, handlers=handlers) as setting:
        job = await finish(setting, job_id)
        assert job.status is JobStatus.SUCCEEDED
        assert job.usage.prompt_tokens == 5
        assert job.step_executions is not None
        usage = job.step_executions[1].usage
        assert usage is not None
        assert usage.prompt_tokens == 5


async def test_what_must_not_run_twice_is_noted_before_it_starts(autojump_clock: MockClock) -> None:
    seen: list[list[str]] = []
    store = MemoryStore()

    async def run(item: HandlerItem) -> str:
        seen.append([event.name for event in store.read_events(JobId(item.job_id))])
        return "done"

    handlers = Handlers()
    handlers.add("run", run)
    step = {"id": "a", "kind": "custom", "config": {"handler": "run", "idempotent": False}}
    async with open_setting(store=store, handlers=handlers) as setting:
        job = await setting.run([step], ["x"])
        assert job.status is JobStatus.SUCCEEDED
    assert "item_started" in seen[0]


async def test_a_step_that_was_about_to_begin_does_not_undo_a_cancellation(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with open_setting(store=store, registry=ScriptedRegistry({"slow": [Script(first=1)]})) as setting:
        job = await setting.submit([llm("a", "slow"), llm("b", depends_on=["a"])], ["x"])
        live = setting.engine._live[job.id]
        post = live.log.post

        def post_and_cancel(events: Iterable[Event] = (), **changes: Any) -> Write:
            events = list(events)
            write = post(events, **changes)
            if any(name == "step_completed" for name, _ in events):
                live.request_stop(Stop.CANCELLED)
                post(state=JobState(cancel_reason="enough"))
            return write

        live.log.post = post_and_cancel  # type: ignore[method-assign]
        job = await setting.engine.wait(job.id)
        assert job.status is JobStatus.CANCELLED
        record = store.get_job(job.id)
        assert record is not None
        assert b"enough" in record.state
        assert [event["data"]["step_id"] for event in setting.stored_events(job.id) if "step_st" in event["event"]] == [
            "a"
        ]


@pytest.mark.parametrize("stop", [None, Stop.CANCELLED, Stop.INTERRUPTED])
async def test_a_job_that_cannot_be_read_just_now_waits_instead_of_failing(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, stop: Stop | None
) -> None:
    def fail(_: object) -> None:
        raise StoreError("unable to open database file")

    store = MemoryStore()
    registry = ScriptedRegistry({"slow": [Script(first=5)]})
    job_id = await run_until_crash(store, registry, [llm("a", "slow"), llm("b", depends_on=["a"])], ["x"], after=1)
    with monkeypatch.context() as patch:
        patch.setattr(store, "read_checkpoints", fail)
        async with open_setting(store=store, registry=registry) as setting, trio.open_nursery() as nursery:
            await trio.sleep(60)
            assert setting.engine.running_count == 1
            if stop is Stop.CANCELLED:
                nursery.start_soon(setting.engine.cancel, job_id)
                await trio.sleep(60)
            if stop is Stop.INTERRUPTED:
                with trio.fail_after(1):
                    await setting.engine.drain(0)
            else:
                patch.undo()
                await finish(setting, job_id)
    async with open_setting(store=store, registry=registry) as setting:
        job = await finish(setting, job_id)
    if stop is Stop.CANCELLED:
        assert job.status is JobStatus.CANCELLED
        assert statuses(job) == {"a": "cancelled", "b": "cancelled"}
    else:
        assert job.status is JobStatus.SUCCEEDED


async def test_calls_that_only_waited_for_their_turn_are_not_spent_by_a_restart(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    registry = ScriptedRegistry({"slow": [Script(echo=True, first=1)]}, max_concurrency=1)
    steps = [llm("a", "slow", mode="fanout")]
    sources = list("12345678")
    # Eight calls, and the one that the crash cuts short.
    limits = {"max_provider_calls": 9}
    job_id = await run_until_crash(store, registry, steps, sources, after=1.5, limits=limits)
    assert registry.prompts == ["1", "2"]
    async with open_setting(store=store, registry=registry) as setting:
        started = [e["data"]["shard_key"] for e in setting.stored_events(job_id) if e["event"] == "item_started"]
        assert started == ["a-0", "a-1"]
        job = await finish(setting, job_id)
        assert job.status is JobStatus.SUCCEEDED
        assert texts(job) == sources
    assert len(registry.calls) == 9


async def test_what_must_not_run_twice_and_only_waited_for_its_turn_is_run(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    registry = ScriptedRegistry({"slow": [Script(echo=True, first=5)]}, max_concurrency=1, idempotent=False)
    ids: list[JobId] = []
    with trio.CancelScope() as crash:
        async with open_setting(store=store, registry=registry) as setting:
            for name in ("first", "second"):
                ids.append((await setting.submit([llm("a", "slow")], [name])).id)
                await trio.sleep(1)
            crash.cancel()
            await trio.sleep_forever()
    async with open_setting(store=store, registry=registry) as setting:
        first, second = [await finish(setting, job_id) for job_id in ids]
        assert first.error is not None
        assert first.error.code == "interrupted"
        assert second.status is JobStatus.SUCCEEDED
    assert registry.prompts == ["first", "second"]


async def test_a_handler_that_only_waited_for_a_thread_is_run_after_a_restart() -> None:
    """In real time: threads know no other."""
    go = threading.Event()
    calls: list[str] = []

    def pay(item: HandlerItem) -> str:
        calls.append(item.job_id)
        go.wait()
        return "paid"

    handlers = Handlers()
    handlers.add("pay", pay)
    step = {"id": "pay", "kind": "custom", "config": {"handler": "pay", "idempotent": False}}
    store = MemoryStore()
    try:
        with trio.CancelScope() as crash:
            async with open_setting(store=store, handlers=handlers) as setting:
                jobs = [await setting.submit([step]) for _ in range(THREADS + 1)]
                with trio.fail_after(20):
                    while len(calls) < THREADS:  # noqa: ASYNC110 - threads start when they like
                        await trio.sleep(0.001)
                crash.cancel()
                await trio.sleep_forever()
    finally:
        go.set()
    async with open_setting(store=store, handlers=handlers) as setting:
        ends = [await finish(setting, job.id) for job in jobs]
        assert sorted(job.id for job in ends if job.error is not None) == sorted(calls[:THREADS])
        assert [job.status for job in ends].count(JobStatus.SUCCEEDED) == 1
