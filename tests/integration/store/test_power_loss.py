"""A machine that loses power at any moment: with `durability = "full"` nothing that was acknowledged is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.disks import PowerLossDisk, use_disk

from pipeline_engine.models import JobId, JobStatus
from pipeline_engine.store import wal
from pipeline_engine.store.base import EventRecord, JobChange, NewJob
from pipeline_engine.store.sqlite import SqliteStore, open_sqlite_store

POINTS = 300
# In these tests the WAL is written back each few commits, so that power also fails in the middle of that.


def accept(number: int) -> JobChange:
    return JobChange(
        job_id=JobId(f"job_{number}"),
        events=[EventRecord(1, "job_queued", b"x" * (number * 37 % 3000) + b"\n")],
        new=NewJob(pipeline_type="p", priority=0, labels={}, created_at="", definition=b"{}"),
        status=JobStatus.QUEUED,
        job=b"{}",
    )


def finish(number: int) -> JobChange:
    events = [
        EventRecord(seq, name, b"y" * 200 + b"\n") for seq, name in ((2, "job_completed"), (3, "stream_finished"))
    ]
    return JobChange(job_id=JobId(f"job_{number}"), events=events, status=JobStatus.SUCCEEDED)


def assert_whole(store: SqliteStore, acknowledged: dict[int, int]) -> None:
    """Each job has the events that were acknowledged, or one more change of its own that was under way."""
    assert store._writer.pragma("integrity_check") == "ok"
    for number, last_seq in acknowledged.items():
        head = store.head(JobId(f"job_{number}"))
        assert head is not None, f"job {number} was acknowledged and is gone"
        assert head.last_seq >= last_seq
        seqs = [event.seq for event in store.read_events(JobId(f"job_{number}"))]
        assert seqs == list(range(1, head.last_seq + 1))
        assert head.is_final == (head.last_seq == 3)


@pytest.mark.parametrize("part", range(3))
def test_nothing_acknowledged_is_lost_when_the_power_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    disk = PowerLossDisk(seed=part)
    acknowledged: dict[int, int] = {}
    monkeypatch.setattr(wal, "CHECKPOINT_PAGES", 20)
    with use_disk(disk, monkeypatch):
        store = open_sqlite_store(tmp_path / "engine.db", durability="full")
        for point in range(POINTS // 3):
            store.write([accept(point)])
            acknowledged[point] = 1
            if point % 3 == 0:
                store.write([finish(point)])
                acknowledged[point] = 3
            disk.lose_power(tmp_path / f"after-{point}")
        store.close()
    for point in range(POINTS // 3):
        survivor = open_sqlite_store(tmp_path / f"after-{point}" / "engine.db")
        assert_whole(survivor, {number: seq for number, seq in acknowledged.items() if number <= point})
        survivor.write([accept(1000)])
        survivor.close()


def test_power_that_fails_inside_a_commit_or_a_checkpoint_leaves_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = PowerLossDisk(seed=7)
    acknowledged: dict[int, int] = {}
    moments: list[tuple[Path, dict[int, int]]] = []
    before = disk.before

    def cut_now_and_then(operation: str, path: str, offset: int = 0, data: bytes | None = None) -> None:
        before(operation, path, offset, data)
        if disk.writes % 7 == 0 and operation == "write":
            directory = tmp_path / f"cut-{len(moments)}"
            disk.lose_power(directory)
            moments.append((directory, dict(acknowledged)))

    monkeypatch.setattr(wal, "CHECKPOINT_PAGES", 10)
    with use_disk(disk, monkeypatch):
        store = open_sqlite_store(tmp_path / "engine.db", durability="full")
        monkeypatch.setattr(disk, "before", cut_now_and_then)
        for number in range(60):
            store.write([accept(number)])
            acknowledged[number] = 1
        store.close()
    assert len(moments) > 20
    for directory, known in moments:
        survivor = open_sqlite_store(directory / "engine.db")
        assert_whole(survivor, known)
        survivor.close()


def test_the_simulated_power_loss_does_lose_what_was_not_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = PowerLossDisk(seed=3)
    with use_disk(disk, monkeypatch):
        store = open_sqlite_store(tmp_path / "engine.db", durability="normal")
        for number in range(30):
            store.write([accept(number)])
        disk.lose_power(tmp_path / "after")
        store.close()
    survivor = open_sqlite_store(tmp_path / "after" / "engine.db")
    assert survivor._writer.pragma("integrity_check") == "ok"
    assert survivor.head(JobId("job_29")) is None, "else these tests would show nothing"
    survivor.close()
