"""The log's live side: stored first, shown then; followers that join, lag, resume and end."""

from __future__ import annotations

import json

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pipeline_engine.errors import GoneError, NotFoundError, UnavailableError
from pipeline_engine.events import TAIL_BYTES, EventLog, JobLog
from pipeline_engine.models import JobId, JobStatus
from pipeline_engine.store.access import StoreAccess
from pipeline_engine.store.base import DeleteJobs, EventRecord, JobChange, JobHead, NewJob, Operation, PruneChunks
from pipeline_engine.store.memory import MemoryStore
from pipeline_engine.store.writer import StoreWriter

JOB = JobId("job_1")
NEW = NewJob(pipeline_type="p", priority=0, labels={}, created_at="", definition=b"{}")


class Setting:
    """An event log over a store in memory; nothing is committed before `start`."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.writer = StoreWriter(store=self.store)
        self.events = EventLog(access=StoreAccess(self.store, threads=1), writer=self.writer)

    def open(self) -> JobLog:
        job_log = self.events.open(JOB)
        job_log.post([("job_queued", {"n": 1})], new=NEW, status=JobStatus.QUEUED)
        return job_log

    async def follow(self, after_seq: int = 0) -> list[int]:
        """The seqs that a follower gets until the job ends."""
        seen: list[int] = []
        async with self.events.follow(JOB, after_seq=after_seq) as follower:
            while (lines := await follower.next_batch()) is not None:
                seen += [json.loads(line)["seq"] for line in lines]
        return seen


@pytest.fixture
def setting() -> Setting:
    return Setting()


async def test_nothing_is_shown_before_it_is_stored(setting: Setting, nursery: trio.Nursery) -> None:
    job_log = setting.open()
    with pytest.raises(NotFoundError):
        await setting.follow()
    await nursery.start(setting.writer.run)
    await wait_all_tasks_blocked()
    async with setting.events.follow(JOB) as follower:
        assert [json.loads(line)["seq"] for line in await follower.next_batch() or ()] == [1]
        setting.writer._wake = trio.Event()  # the writer sleeps on: what is posted now stays uncommitted
        job_log.post([("step_started", {})])
        with trio.move_on_after(0) as scope:
            await follower.next_batch()
        assert scope.cancelled_caught
    nursery.cancel_scope.cancel()


async def test_an_event_has_its_place_name_job_and_time(setting: Setting, nursery: trio.Nursery) -> None:
    await nursery.start(setting.writer.run)
    setting.open()
    await wait_all_tasks_blocked()
    [record] = setting.store.read_events(JOB)
    event = json.loads(record.line)
    assert list(event) == ["seq", "event", "job_id", "ts", "data"]
    assert (event["seq"], event["event"], event["job_id"], event["data"]) == (1, "job_queued", JOB, {"n": 1})
    assert record.line.endswith(b"}\n")
    assert record.line.count(b"\n") == 1
    nursery.cancel_scope.cancel()


async def test_followers_that_join_at_any_time_see_the_same(setting: Setting, nursery: trio.Nursery) -> None:
    await nursery.start(setting.writer.run)
    job_log = setting.open()
    await wait_all_tasks_blocked()
    seen: dict[int, list[int]] = {}

    async def follow(name: int) -> None:
        seen[name] = await setting.follow()

    async with trio.open_nursery() as followers:
        for name in range(10):
            followers.start_soon(follow, name)
            await wait_all_tasks_blocked()
            await job_log.append([("provider_chunk", {"i": name}), ("provider_chunk", {})])
        await job_log.append([("stream_finished", {})], status=JobStatus.SUCCEEDED)
        setting.events.retire(JOB)
        followers.start_soon(follow, 10)
    assert all(seqs == list(range(1, 23)) for seqs in seen.values())
    assert len(seen) == 11
    nursery.cancel_scope.cancel()


async def test_every_resume_point_gives_exactly_the_rest(setting: Setting, nursery: trio.Nursery) -> None:
    await nursery.start(setting.writer.run)
    job_log = setting.open()
    await job_log.append([("e", {"i": index}) for index in range(8)])
    await job_log.append([("stream_finished", {})], status=JobStatus.SUCCEEDED)
    for retired in (False, True):
        if retired:
            setting.events.retire(JOB)
        for after in range(13):
            assert await setting.follow(after) == list(range(after + 1, 11))
    nursery.cancel_scope.cancel()


async def test_a_follower_that_lags_reads_the_store_and_the_tail_stays_bounded(
    setting: Setting, nursery: trio.Nursery
) -> None:
    await nursery.start(setting.writer.run)
    job_log = setting.open()
    await wait_all_tasks_blocked()
    async with setting.events.follow(JOB) as follower:
        for _ in range(40):
            await job_log.append([("e", "x" * 50_000)])
        await job_log.append([("stream_finished", {})], status=JobStatus.SUCCEEDED)
        assert sum(map(len, job_log._tail)) <= 2 * TAIL_BYTES
        seqs: list[int] = []
        while (lines := await follower.next_batch()) is not None:
            assert sum(map(len, lines)) < 400_000
            seqs += [json.loads(line)["seq"] for line in lines]
    assert seqs == list(range(1, 43))
    nursery.cancel_scope.cancel()


async def test_an_event_larger_than_the_tail_reaches_its_followers(setting: Setting, nursery: trio.Nursery) -> None:
    await nursery.start(setting.writer.run)
    job_log = setting.open()
    await job_log.append([("e", "x" * (3 * TAIL_BYTES)), ("e", "y" * (3 * TAIL_BYTES))])
    await job_log.append([("stream_finished", {})], status=JobStatus.SUCCEEDED)
    assert await setting.follow() == [1, 2, 3, 4]
    nursery.cancel_scope.cancel()


async def test_many_wakings_cost_a_slow_follower_one(setting: Setting, nursery: trio.Nursery) -> None:
    await nursery.start(setting.writer.run)
    job_log = setting.open()
    await wait_all_tasks_blocked()
    async with setting.events.follow(JOB) as follower:
        for index in range(100):
            await job_log.append([("e", index)])
        lines = await follower.next_batch()
        assert lines is not None
        assert len(lines) == 101
    assert job_log.follower_count == 0
    nursery.cancel_scope.cancel()


async def test_the_end_of_the_daemon_ends_followers_without_the_end_of_the_job(
    setting: Setting, nursery: trio.Nursery
) -> None:
    await nursery.start(setting.writer.run)
    setting.open()
    await wait_all_tasks_blocked()
    async with setting.events.follow(JOB) as follower:
        await follower.next_batch()
        setting.events.close()
        with pytest.raises(UnavailableError, match="follow again"):
            await follower.next_batch()
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("operation", "error", "words"),
    [
        (PruneChunks(JOB), GoneError, "up to 50 were pruned; begin with after_seq=50"),
        (DeleteJobs([JOB]), NotFoundError, "was deleted"),
    ],
)
async def test_events_that_go_while_they_are_followed_are_told_of(
    setting: Setting, nursery: trio.Nursery, operation: Operation, error: type[Exception], words: str
) -> None:
    await nursery.start(setting.writer.run)
    job_log = setting.open()
    await job_log.append([("provider_chunk", "x" * 1000)] * 49)
    await job_log.append([("step_completed", {}), ("stream_finished", {})], status=JobStatus.SUCCEEDED)
    setting.events.retire(JOB)
    async with setting.events.follow(JOB) as follower:
        lines = await follower.next_batch(max_bytes=10_000)
        assert lines is not None
        assert [json.loads(line)["seq"] for line in lines] == list(range(1, len(lines) + 1))
        assert len(lines) < 49
        await setting.writer.execute(operation)
        with pytest.raises(error, match=words):
            await follower.next_batch()
    nursery.cancel_scope.cancel()


async def test_pruned_events_are_gone(setting: Setting, nursery: trio.Nursery) -> None:
    await nursery.start(setting.writer.run)
    job_log = setting.open()
    await job_log.append([("provider_chunk", {}), ("stream_finished", {})], status=JobStatus.SUCCEEDED)
    setting.events.retire(JOB)
    await setting.writer.execute(PruneChunks(JOB))
    with pytest.raises(GoneError) as gone:
        await setting.follow()
    assert gone.value.details["pruned_seq"] == 2
    assert await setting.follow(2) == [3]
    nursery.cancel_scope.cancel()


async def test_an_unknown_job_is_not_found(setting: Setting) -> None:
    with pytest.raises(NotFoundError, match="job_1"):
        await setting.follow()


async def test_the_input_of_a_job_that_waits_is_not_kept_in_memory(setting: Setting, nursery: trio.Nursery) -> None:
    await nursery.start(setting.writer.run)
    job_log = setting.events.open(JOB)
    await job_log.append([("job_queued", {"input": "x" * 100_000})], new=NEW, status=JobStatus.QUEUED)
    assert job_log.tail_after(0, 1 << 20) is None
    await job_log.append([("stream_finished", {})], status=JobStatus.SUCCEEDED)
    assert await setting.follow() == [1, 2]
    nursery.cancel_scope.cancel()


async def test_a_job_that_ends_while_a_follower_looks_it_up_is_followed_to_its_end(
    setting: Setting, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nursery.start(setting.writer.run)
    job_log = setting.open()
    real_head = setting.store.head
    heads = []

    def head_before_the_end(job_id: JobId) -> JobHead | None:
        heads.append(real_head(job_id))
        if len(heads) == 1:
            end = EventRecord(2, "stream_finished", b'{"seq":2}\n')
            setting.store.write([JobChange(job_id=JOB, events=[end], status=JobStatus.SUCCEEDED)])
            setting.events.retire(JOB)
        return heads[-1]

    await wait_all_tasks_blocked()
    job_log.committed_seq = 0  # as long as its first commit is not told
    monkeypatch.setattr(setting.store, "head", head_before_the_end)
    assert await setting.follow() == [1, 2]
    nursery.cancel_scope.cancel()
