"""The write-ahead log stays bounded, however many read while others write."""

from __future__ import annotations

import threading
from pathlib import Path

from pipeline_engine.models import JobId, JobStatus
from pipeline_engine.store.base import EventRecord, JobChange, NewJob
from pipeline_engine.store.sqlite import open_sqlite_store

READERS = 8
WRITES = 600
LINE = b"x" * 50_000
JOB = JobId("job")
LIMIT = 20 * 1024 * 1024  # bytes; much less than the 30 MB that are written


def test_the_wal_stays_bounded_under_many_readers(tmp_path: Path) -> None:
    store = open_sqlite_store(tmp_path / "engine.db")
    new = NewJob(pipeline_type="p", priority=0, labels={}, created_at="", definition=b"{}")
    first = EventRecord(1, "job_queued", LINE)
    store.write([JobChange(job_id=JOB, new=new, events=[first], status=JobStatus.QUEUED, job=b"{}")])
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
