"""Each way to stop a job: what ends, what is told, and that nothing is left. Virtual time."""

from __future__ import annotations

import pytest
import trio
import trio.lowlevel
from tests.engine_setting import Script, ScriptedRegistry, Setting, llm, names, open_setting, statuses, texts
from trio.testing import MockClock, wait_all_tasks_blocked

from pipeline_engine.decoding import to_json
from pipeline_engine.engine import EngineLimits
from pipeline_engine.errors import (
    ErrorCode,
    NotFoundError,
    ProviderError,
    QueueFullError,
    StoreFullError,
    UnavailableError,
)
from pipeline_engine.models import JobId, JobStatus
from pipeline_engine.steps.handlers import HandlerItem, Handlers
from pipeline_engine.store.memory import MemoryStore


def slow() -> ScriptedRegistry:
    down = ProviderError(ErrorCode.PROVIDER_ERROR, "down", retryable=True, retry_after_s=50)
    return ScriptedRegistry({"slow": [Script(first=100)], "down": [Script(tokens=(), error=down)]})


async def test_a_cancelled_job_ends_at_once_with_its_reason(autojump_clock: MockClock) -> None:
    registry = slow()
    async with open_setting(registry=registry) as setting:
        job = await setting.submit([llm("a", "slow"), llm("b", "slow"), llm("c", depends_on=["a"])])
        await trio.sleep(1)
        assert registry.under_way == 2
        began = trio.current_time()
        job = await setting.engine.cancel(job.id, "user aborted")
        assert trio.current_time() == began
        assert registry.under_way == 0
        assert job.status is JobStatus.CANCELLED
        assert job.error is not None
        assert (job.error.code, job.error.message) == ("cancelled", "user aborted")
        assert statuses(job) == {"a": "cancelled", "b": "cancelled", "c": "cancelled"}
        events = await setting.events(job.id)
        assert names(events)[-6:] == ["step_cancelled"] * 3 + ["job_status", "job_cancelled", "stream_finished"]
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))


async def test_cancelling_twice_or_too_late_changes_nothing(autojump_clock: MockClock) -> None:
    async with open_setting(registry=slow()) as setting:
        done = await setting.run([llm("a")])
        assert to_json(await setting.engine.cancel(done.id)) == to_json(done)
        job = await setting.submit([llm("a", "slow")])
        await trio.sleep(1)
        first = await setting.engine.cancel(job.id, "one")
        assert await setting.engine.cancel(job.id, "two") == first
        assert names(await setting.events(job.id)).count("stream_finished") == 1
        with pytest.raises(NotFoundError):
            await setting.engine.cancel(JobId("job_none"))


async def test_a_pause_before_a_retry_is_cut_short(autojump_clock: MockClock) -> None:
    registry = slow()
    async with open_setting(registry=registry) as setting:
        job = await setting.submit([llm("a", "down")])
        await trio.sleep(1)
        began = trio.current_time()
        job = await setting.engine.cancel(job.id)
        assert trio.current_time() == began
        assert job.status is JobStatus.CANCELLED
        assert len(registry.calls) == 1


async def test_a_queued_job_is_cancelled_whatever_runs(autojump_clock: MockClock) -> None:
    registry = slow()
    async with open_setting(registry=registry, limits=EngineLimits(max_running_jobs=1)) as setting:
        first = await setting.submit([llm("a", "slow")])
        queued = await setting.submit([llm("q")])
        last = await setting.submit([llm("l")])
        await trio.sleep(1)
        began = trio.current_time()
        job = await setting.engine.cancel(queued.id)
        assert trio.current_time() == began
        assert job.status is JobStatus.CANCELLED
        assert statuses(job) == {"q": "cancelled"}
        assert "job_started" not in names(await setting.events(queued.id))
        await setting.engine.cancel(first.id)
        assert (await setting.engine.wait(last.id)).status is JobStatus.SUCCEEDED
        assert len(registry.calls) == 2


async def test_others_go_on(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"m": [Script(first=5)]})
    async with open_setting(registry=registry) as setting:
        jobs = [await setting.submit([llm("a", "m")]) for _ in range(5)]
        await trio.sleep(1)
        await setting.engine.cancel(jobs[2].id)
        ends = [(await setting.engine.wait(job.id)).status.value for job in jobs]
        assert ends == ["succeeded", "succeeded", "cancelled", "succeeded", "succeeded"]


@pytest.mark.parametrize("pause", [n / 10 for n in range(12)])
async def test_a_race_with_the_end_has_one_end(autojump_clock: MockClock, pause: float) -> None:
    registry = ScriptedRegistry({"m": [Script(tokens="abc", delay=0.3)]})
    async with open_setting(registry=registry) as setting:
        job = await setting.submit([llm("a", "m")])
        await trio.sleep(pause)
        answers = [(await setting.engine.cancel(job.id)).status for _ in range(2)]
        final = await setting.engine.get_job(job.id)
        assert set(answers) == {final.status}
        ends = [name for name in names(await setting.events(job.id)) if name.startswith("job_c")]
        assert ends == ["job_cancelled" if final.status is JobStatus.CANCELLED else "job_completed"]


async def test_a_drain_lets_jobs_finish_and_interrupts_the_rest(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"quick": [Script(first=2)], "slow": [Script(first=100)]})
    async with open_setting(registry=registry, grace_s=10) as setting:
        quick = await setting.submit([llm("a", "quick")])
        long = await setting.submit([llm("a", "slow")])
        await trio.sleep(1)
        store = setting.store
        began = trio.current_time()
    assert trio.current_time() - began == pytest.approx(10)
    assert registry.under_way == 0
    heads = [store.head(job.id) for job in (quick, long)]
    assert [head.is_final for head in heads if head is not None] == [True, False]
    last = store.last_event(long.id)
    assert last is not None
    assert last.name == "item_started"


async def test_a_drain_does_not_wait_for_a_store_that_fails(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise StoreFullError("no space")

    registry = slow()
    store = MemoryStore()
    with monkeypatch.context() as patch:
        async with open_setting(registry=registry, store=store) as setting:
            job = await setting.submit([llm("a", "slow")])
            await trio.sleep(1)
            patch.setattr(store, "write", fail)
            with pytest.raises(StoreFullError):
                await setting.submit([llm("a")])
            began = trio.current_time()
    assert trio.current_time() - began < 2
    async with open_setting(registry=registry, store=store) as setting:
        assert (await setting.engine.wait(job.id)).status is JobStatus.SUCCEEDED


async def test_followers_of_an_interrupted_job_end_without_its_end(autojump_clock: MockClock) -> None:
    registry = slow()
    seen: list[str] = []

    async def follow(setting: Setting, job_id: JobId) -> None:
        with pytest.raises(UnavailableError):
            await collect(setting, job_id)

    async def collect(setting: Setting, job_id: JobId) -> None:
        async for event in setting.follow(job_id):
            seen.append(event["event"])

    async with trio.open_nursery() as nursery, open_setting(registry=registry) as setting:
        job = await setting.submit([llm("a", "slow")])
        nursery.start_soon(follow, setting, job.id)
        await wait_all_tasks_blocked()
    assert seen[0] == "job_queued"
    assert "stream_finished" not in seen


async def test_a_stopping_engine_accepts_nothing(autojump_clock: MockClock) -> None:
    async with open_setting(registry=slow()) as setting:
        await setting.engine.drain(0)
        with pytest.raises(UnavailableError, match="stopping"):
            await setting.submit([llm("a")])


async def test_the_result_of_a_cancelled_job_holds_what_was_finished(autojump_clock: MockClock) -> None:
    async with open_setting(registry=slow()) as setting:
        job = await setting.submit([llm("a"), llm("b", "slow", depends_on=["a"])])
        await trio.sleep(1)
        job = await setting.engine.cancel(job.id)
        assert texts(job) == ["ok"]
        assert statuses(job) == {"a": "success", "b": "cancelled"}


async def test_nobody_who_submits_hangs_when_the_engine_is_cancelled_from_outside() -> None:
    answers: list[object] = []

    async def submit(setting: Setting) -> None:
        try:
            answers.append(await setting.submit([llm("a")]))
        except UnavailableError as exc:
            answers.append(exc)

    with trio.fail_after(5), trio.CancelScope() as scope:
        async with open_setting() as setting, trio.open_nursery() as clients:
            clients.start_soon(submit, setting)
            clients.start_soon(submit, setting)
            scope.cancel()
    assert len(answers) == 2


async def test_cancelled_jobs_do_not_pile_up_behind_one_that_keeps_the_queue_waiting(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"slow": [Script(first=1000)]})
    async with open_setting(registry=registry, limits=EngineLimits(max_running_jobs=1)) as setting:
        await setting.submit([llm("a", "slow")], ["x"])
        for _ in range(200):
            job = await setting.submit([llm("a")], ["x"])
            await setting.engine.cancel(job.id)
        assert len(setting.engine._queue._heap) < 100


async def test_a_cancellation_while_the_daemon_stops_is_not_forgotten(autojump_clock: MockClock) -> None:
    """It is carried out at once if the job has not let go, and after the next start otherwise."""
    registry = slow()
    async with open_setting(registry=registry) as setting, trio.open_nursery() as nursery:
        job = await setting.submit([llm("a", "slow")])
        await trio.sleep(1)
        nursery.start_soon(setting.engine.drain, 0)
        await trio.lowlevel.checkpoint()
        cancelled = await setting.engine.cancel(job.id, "enough")
        store = setting.store
    if cancelled.status is not JobStatus.CANCELLED:
        async with open_setting(registry=registry, store=store) as setting:
            cancelled = await setting.engine.wait(job.id)
    assert cancelled.status is JobStatus.CANCELLED
    assert cancelled.error is not None
    assert cancelled.error.message == "enough"


async def test_jobs_that_are_being_stored_count_as_waiting(autojump_clock: MockClock) -> None:
    refused: list[QueueFullError] = []
    limits = EngineLimits(max_running_jobs=1, max_queued_jobs=3)
    async with open_setting(registry=slow(), limits=limits) as setting:

        async def submit() -> None:
            try:
                await setting.submit([llm("a", "slow")])
            except QueueFullError as exc:
                refused.append(exc)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(submit)
        assert len(refused) >= 6


async def translate(item: HandlerItem) -> str:
    """A handler that makes an error of its own of a cancellation, as many do."""
    try:
        await trio.sleep(10)
    except BaseException as exc:
        raise RuntimeError("fetch failed") from exc
    return "done"


async def test_a_handler_does_not_decide_how_its_cancelled_job_ends(autojump_clock: MockClock) -> None:
    handlers = Handlers()
    handlers.add("h", translate)
    step = {"id": "a", "kind": "custom", "export": True, "config": {"handler": "h"}}
    store = MemoryStore()
    async with open_setting(store=store, handlers=handlers) as setting:
        job = await setting.submit([step])
        await trio.sleep(1)
        assert (await setting.engine.cancel(job.id)).status is JobStatus.CANCELLED
        for limited in (await setting.run([step], timeout_s=1), await setting.run([{**step, "timeout_s": 1}])):
            assert limited.error is not None
            assert limited.error.code == "timeout"
        job = await setting.submit([step])
        await trio.sleep(1)
        await setting.engine.drain(0)
    async with open_setting(store=store, handlers=handlers) as setting:
        assert (await setting.engine.wait(job.id)).status is JobStatus.SUCCEEDED
