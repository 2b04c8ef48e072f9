"""The write-ahead log stays bounded, however many read while others write."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from tests.engine_setting import Script, ScriptedRegistry, llm, open_setting

from pipeline_engine.errors import ErrorCode, StepError
from pipeline_engine.models import JobId, JobStatus
from pipeline_engine.store import wal
from pipeline_engine.store.base import EventRecord, JobChange, NewJob
from pipeline_engine.store.sqlite import SqliteStore, open_sqlite_store, open_sqlite_store_to_read
from pipeline_engine.store.wal import IDLE_SIZE

READERS = 8
WRITES = 600
LINE = b"x" * 50_000
JOB = JobId("job")
NEW = JobChange(
    job_id=JOB,
    new=NewJob(pipeline_type="p", priority=0, labels={}, created_at="", definition=b"{}"),
    events=[EventRecord(1, "job_queued", LINE)],
    status=JobStatus.QUEUED,
    job=b"{}",
)
FOLLOWERS = 200
TOKENS = 200
LIMIT = 12 * 1024 * 1024  # bytes; much less than the 30 MB that are written


def test_the_wal_stays_bounded_under_many_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal, "CHECKPOINT_PAGES", 250)
    monkeypatch.setattr(wal, "RESTART_PAGES", 1000)
    store = open_sqlite_store(tmp_path / "engine.db")
    store.write([NEW])
    stop = threading.Event()
    pages: list[int] = []

    def follow() -> None:
        seq, count = 0, 0
        while not stop.is_set():
            events = store.read_events(JOB, after_seq=seq, max_bytes=256 * 1024)
            seq = events[-1].seq if events else 0
            count += 1
        pages.append(count)

    readers = [threading.Thread(target=follow) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    largest = 0
    for seq in range(2, WRITES):
        store.write([JobChange(job_id=JOB, events=[EventRecord(seq, "provider_chunk", LINE)])])
        largest = max(largest, (tmp_path / "engine.db-wal").stat().st_size)
    stop.set()
    for reader in readers:
        reader.join()
    assert len(pages) == READERS
    assert min(pages) > 0
    assert largest < LIMIT
    store.close()


def fill(store: SqliteStore, first: int, last: int) -> None:
    for seq in range(first, last):
        store.write([JobChange(job_id=JOB, events=[EventRecord(seq, "provider_chunk", LINE)])])


def test_a_store_that_rests_leaves_no_large_wal(tmp_path: Path) -> None:
    store = open_sqlite_store(tmp_path / "engine.db")
    wal_file = tmp_path / "engine.db-wal"
    store.write([NEW])
    assert store.rest()
    small = wal_file.stat().st_size
    assert 0 < small < IDLE_SIZE  # not worth a write of the database
    fill(store, 2, 100)
    assert wal_file.stat().st_size > IDLE_SIZE
    reader = open_sqlite_store_to_read(tmp_path / "engine.db")
    reader._writer.execute("BEGIN")
    reader._writer.execute("SELECT count(*) FROM events").fetchall()
    fill(store, 100, 101)
    assert not store.rest()
    reader._writer.execute("COMMIT")
    assert store.rest()
    assert wal_file.stat().st_size == 0
    assert [event.seq for event in store.read_events(JOB, max_bytes=1 << 30)] == list(range(1, 101))
    reader.close()
    store.close()


def test_those_who_write_wait_ever_more_rarely_for_a_reader_that_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "CHECKPOINT_PAGES", 50)
    monkeypatch.setattr(wal, "RESTART_PAGES", 100)
    monkeypatch.setattr(wal, "RESTART_WAIT", 1)
    store = open_sqlite_store(tmp_path / "engine.db")
    store.write([NEW])
    reader = open_sqlite_store_to_read(tmp_path / "engine.db")
    reader._writer.execute("BEGIN")
    reader._writer.execute("SELECT count(*) FROM events").fetchall()
    waits: list[int] = []
    for seq in range(2, 202):  # 2,600 pages
        before = store._wal._wait, store._wal._restart_at
        fill(store, seq, seq + 1)
        if (store._wal._wait, store._wal._restart_at) != before:
            waits.append(seq)
    pauses = [after - before for before, after in pairwise(waits)]
    assert len(waits) > 3
    assert all(after > 1.5 * before for before, after in pairwise(pauses))
    reader._writer.execute("COMMIT")
    fill(store, 202, 600)
    assert store._wal._restart_at == 100
    reader.close()
    store.close()


async def test_the_wal_stays_bounded_with_hundreds_of_followers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "CHECKPOINT_PAGES", 50)
    monkeypatch.setattr(wal, "RESTART_PAGES", 150)
    store = open_sqlite_store(tmp_path / "engine.db")
    # It fails at last: else its last change would hold the text thrice, in one transaction.
    failure = StepError(ErrorCode.PROVIDER_AUTH, "no")
    registry = ScriptedRegistry({"much": [Script(tokens=["x" * 50_000] * TOKENS, delay=0.005, error=failure)]})
    sizes: list[int] = []
    replays = [0] * FOLLOWERS
    async with open_setting(store=store, registry=registry) as setting, trio.open_nursery() as nursery:
        job = await setting.submit([llm("a", "much")])

        async def replay_again_and_again(number: int) -> None:
            while True:
                async with setting.engine.follow(job.id, after_seq=0) as follower:
                    for _ in range(3):
                        await follower.next_batch()
                replays[number] += 1
                await trio.lowlevel.checkpoint()

        for number in range(FOLLOWERS):
            nursery.start_soon(replay_again_and_again, number)
        async for _ in setting.follow(job.id):
            sizes.append((tmp_path / "engine.db-wal").stat().st_size)
        nursery.cancel_scope.cancel()
    assert len(sizes) > TOKENS
    assert min(replays) > 0
    assert max(sizes) < TOKENS * 50_000 / 2
    store.close()
