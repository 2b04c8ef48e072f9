"""The Store protocol, held by both stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline_engine.models import JobId, JobStatus
from pipeline_engine.store.base import (
    CheckpointRecord,
    DeleteJobs,
    EventRecord,
    ExecutionRecord,
    ForgetIdempotencyKeys,
    IdempotencyRecord,
    JobChange,
    JobFilter,
    NewJob,
    PruneChunks,
    PutDefinition,
    PutProfile,
    RemoveDefinition,
    RemoveProfile,
    Store,
)
from pipeline_engine.store.memory import MemoryStore
from pipeline_engine.store.sqlite import open_sqlite_store


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened: Store = MemoryStore() if request.param == "memory" else open_sqlite_store(tmp_path / "engine.db")
    yield opened
    opened.close()


def new_job(name: str, *, labels: dict[str, str] | None = None, pipeline_type: str = "p.v1") -> JobChange:
    return JobChange(
        job_id=JobId(name),
        events=[EventRecord(1, "job_queued", b'{"seq":1}\n')],
        new=NewJob(
            pipeline_type=pipeline_type,
            priority=3,
            labels=labels or {},
            created_at="2026-01-01T00:00:00.000000Z",
            definition=b"{}",
        ),
        status=JobStatus.QUEUED,
        job=b'{"id":"%b"}' % name.encode(),
    )


def events(name: str, first: int, last: int, event: str = "provider_chunk", size: int = 10) -> JobChange:
    records = [EventRecord(seq, event, b"x" * size + b"\n") for seq in range(first, last + 1)]
    return JobChange(job_id=JobId(name), events=records)


def finish(name: str, seq: int) -> JobChange:
    record = EventRecord(seq, "stream_finished", b"{}\n")
    return JobChange(job_id=JobId(name), events=[record], status=JobStatus.SUCCEEDED)


def seqs(store: Store, name: str, **kwargs: Any) -> list[int]:
    return [event.seq for event in store.read_events(JobId(name), **kwargs)]


def test_events_come_back_in_order_after_any_seq(store: Store) -> None:
    store.write([new_job("a"), new_job("b"), events("a", 2, 5), events("b", 2, 2), events("a", 6, 6)])
    assert seqs(store, "a") == [1, 2, 3, 4, 5, 6]
    assert seqs(store, "b") == [1, 2]
    assert seqs(store, "a", after_seq=4) == [5, 6]
    assert seqs(store, "a", after_seq=6) == []
    assert seqs(store, "a", after_seq=99) == []
    assert seqs(store, "a", limit=2) == [1, 2]
    assert seqs(store, "nobody") == []


def test_a_page_of_events_is_bounded_by_bytes_but_never_empty(store: Store) -> None:
    store.write([new_job("a"), events("a", 2, 4, size=100)])
    assert seqs(store, "a", after_seq=1, max_bytes=210) == [2, 3]
    assert seqs(store, "a", after_seq=1, max_bytes=1) == [2]


def test_events_can_be_read_by_name(store: Store) -> None:
    store.write([new_job("a"), events("a", 2, 3), events("a", 4, 4, "item_started"), events("a", 5, 5)])
    found = store.read_events(JobId("a"), names=("item_started",))
    assert [(event.seq, event.name) for event in found] == [(4, "item_started")]


def test_the_head_and_the_last_event_follow_the_writes(store: Store) -> None:
    assert store.head(JobId("a")) is None
    store.write([new_job("a"), events("a", 2, 3)])
    head = store.head(JobId("a"))
    assert head is not None
    assert (head.last_seq, head.is_final) == (3, False)
    store.write([finish("a", 4)])
    head = store.head(JobId("a"))
    assert head is not None
    assert (head.last_seq, head.is_final) == (4, True)
    last = store.last_event(JobId("a"))
    assert last is not None
    assert last.name == "stream_finished"


def test_a_job_is_read_with_its_executions_in_the_order_of_its_steps(store: Store) -> None:
    change = JobChange(
        job_id=JobId("a"),
        status=JobStatus.RUNNING,
        job=b"2",
        state=b"s",
        executions=[ExecutionRecord(1, b"second"), ExecutionRecord(0, b"first")],
    )
    store.write([new_job("a"), change])
    store.write([JobChange(job_id=JobId("a"), executions=[ExecutionRecord(1, b"second again")])])
    record = store.get_job(JobId("a"))
    assert record is not None
    assert record.status is JobStatus.RUNNING
    assert (record.job, record.state, record.definition, record.priority) == (b"2", b"s", b"{}", 3)
    assert list(record.executions) == [b"first", b"second again"]
    assert store.get_job(JobId("b")) is None


def test_checkpoints_stand_in_the_order_of_steps_and_shards(store: Store) -> None:
    points = [
        CheckpointRecord(1, 0, b"s"),
        CheckpointRecord(0, 10, b"f-10"),
        CheckpointRecord(0, 9, b"f-9"),
    ]
    store.write([new_job("a"), JobChange(job_id=JobId("a"), checkpoints=points)])
    assert [point.checkpoint for point in store.read_checkpoints(JobId("a"))] == [b"f-9", b"f-10", b"s"]
    assert store.read_checkpoints(JobId("b")) == []


def test_unfinished_jobs_are_queued_and_running_ones_oldest_first(store: Store) -> None:
    store.write([new_job("a"), new_job("b"), new_job("c"), finish("b", 2)])
    assert [record.job_id for record in store.unfinished_jobs()] == ["a", "c"]


def test_lists_filter_and_page(store: Store) -> None:
    for index in range(5):
        store.write([new_job(f"j{index}", labels={"k": str(index % 2)}, pipeline_type=f"t{index % 2}")])
    store.write([finish("j4", 2)])

    def names(**kwargs: object) -> list[str]:
        return [summary.job.decode()[7:-2] for summary in store.list_jobs(JobFilter(**kwargs))]  # type: ignore[arg-type]

    assert names() == ["j4", "j3", "j2", "j1", "j0"]
    assert names(labels={"k": "0"}) == ["j4", "j2", "j0"]
    assert names(labels={"k": "9"}) == []
    assert names(pipeline_type="t1") == ["j3", "j1"]
    assert names(status=JobStatus.SUCCEEDED) == ["j4"]
    page = store.list_jobs(JobFilter(limit=2))
    assert [summary.job.decode()[7:-2] for summary in page] == ["j4", "j3"]
    assert names(before=page[-1].number, limit=2) == ["j2", "j1"]


def test_deleting_a_job_leaves_nothing_of_it_but_its_key(store: Store) -> None:
    key = IdempotencyRecord(key="k", body_hash=b"h", used_at=1.0)
    change = JobChange(job_id=JobId("a"), idempotency=key, artifacts=["s1"])
    store.write([new_job("a", labels={"x": "y"}), new_job("b"), change, events("a", 2, 9), events("b", 2, 2)])
    store.write([finish("a", 10), DeleteJobs([JobId("a")])])
    assert store.head(JobId("a")) is None
    assert seqs(store, "a") == []
    assert store.find_idempotency("k") == (b"h", "a")
    assert store.artifacts_in_use() == set()
    assert seqs(store, "b") == [1, 2]
    assert store.list_jobs(JobFilter(labels={"x": "y"})) == []


def test_pruned_chunks_leave_the_other_events_and_say_so(store: Store) -> None:
    store.write([new_job("a"), events("a", 2, 4), events("a", 5, 5, "item_completed"), finish("a", 6)])
    store.write([PruneChunks(JobId("a"))])
    assert seqs(store, "a") == [1, 5, 6]
    assert seqs(store, "a", after_seq=4) == [5, 6]
    head = store.head(JobId("a"))
    assert head is not None
    assert (head.pruned_seq, head.last_seq) == (4, 6)
    assert store.finished_jobs(limit=10, with_chunks=True) == []
    assert len(store.finished_jobs(limit=10)) == 1


def test_a_job_that_came_without_its_chunks_keeps_the_mark_of_what_is_missing(store: Store) -> None:
    store.write([new_job("a"), events("a", 5, 5, "item_completed"), finish("a", 6)])
    store.write([JobChange(job_id=JobId("a"), pruned_seq=4)])
    store.write([PruneChunks(JobId("a"))])
    head = store.head(JobId("a"))
    assert head is not None
    assert (head.pruned_seq, head.last_seq) == (4, 6)
    assert store.finished_jobs(limit=10, with_chunks=True) == []


def test_idempotency_keys_are_found_until_they_are_forgotten(store: Store) -> None:
    key = IdempotencyRecord(key="k", body_hash=b"h", used_at=100.0)
    store.write([new_job("a"), JobChange(job_id=JobId("a"), idempotency=key)])
    assert store.find_idempotency("k") == (b"h", "a")
    store.write([ForgetIdempotencyKeys(99.0)])
    assert store.find_idempotency("k") is not None
    store.write([ForgetIdempotencyKeys(101.0)])
    assert store.find_idempotency("k") is None


def test_the_oldest_idempotency_key_is_known_by_its_time(store: Store) -> None:
    assert store.oldest_idempotency() is None
    for name, used_at in (("a", 200.0), ("b", 100.0), ("c", 300.0)):
        key = IdempotencyRecord(key=name, body_hash=b"h", used_at=used_at)
        store.write([new_job(name), JobChange(job_id=JobId(name), idempotency=key)])
    assert store.oldest_idempotency() == 100.0
    store.write([ForgetIdempotencyKeys(150.0)])
    assert store.oldest_idempotency() == 200.0


def test_definitions_and_profiles_are_kept(store: Store) -> None:
    store.write([PutDefinition("b", b"1"), PutDefinition("a", b"2"), PutDefinition("b", b"3")])
    assert store.definitions() == {"a": b"2", "b": b"3"}
    store.write([RemoveDefinition("a"), PutProfile("p", b"shown", b"secret")])
    assert store.definitions() == {"b": b"3"}
    assert store.profiles() == {"p": (b"shown", b"secret")}
    store.write([RemoveProfile("p")])
    assert store.profiles() == {}


def test_artifacts_belong_to_their_jobs(store: Store) -> None:
    store.write([new_job("a"), JobChange(job_id=JobId("a"), artifacts=["s1", "s2"])])
    assert store.artifact_owned(JobId("a"), "s1")
    assert not store.artifact_owned(JobId("b"), "s1")
    assert store.artifacts_in_use() == {"s1", "s2"}


def test_finished_jobs_come_in_the_order_in_which_they_ended(store: Store) -> None:
    store.write([new_job("a"), new_job("b"), finish("b", 2)])
    store.write([finish("a", 2)])
    assert {job.job_id for job in store.finished_jobs(limit=10)} == {"a", "b"}
    assert store.count_finished() == 2
    assert len(store.finished_jobs(limit=1)) == 1
    assert store.used_bytes > 0


def test_a_job_ends_when_it_says_so_or_else_now(store: Store) -> None:
    assert store.last_finished_at() is None
    ends = [("a", "2026-01-02T00:00:00.000Z"), ("b", "2026-01-03T00:00:00.000Z"), ("c", "2026-01-01T00:00:00.000Z")]
    for name, finished_at in ends:
        change = JobChange(job_id=JobId(name), status=JobStatus.FAILED, finished_at=finished_at)
        store.write([new_job(name), change])
    assert [(job.job_id, job.finished_at) for job in store.finished_jobs(limit=9)] == sorted(
        ends, key=lambda end: end[1]
    )
    assert store.last_finished_at() == "2026-01-03T00:00:00.000Z"
    store.write([new_job("d"), finish("d", 2)])
    assert str(store.last_finished_at()) > "2026-01-03T00:00:00.000Z"


def test_the_artifacts_of_some_jobs_and_those_that_any_has(store: Store) -> None:
    owned = {"a": ["1", "2"], "b": ["2", "3"], "c": []}
    for name, artifacts in owned.items():
        store.write([new_job(name), JobChange(job_id=JobId(name), artifacts=artifacts)])
    assert store.artifacts_of([JobId("a"), JobId("c")]) == ["1", "2"]
    assert store.artifacts_of([JobId("a"), JobId("b"), JobId("nobody")]) == ["1", "2", "3"]
    assert store.artifacts_of([]) == []
    assert store.artifacts_in_use(["2", "9"]) == {"2"}
    assert store.artifacts_in_use([str(number) for number in range(2, 2000)]) == {"2", "3"}
    assert store.artifacts_in_use([]) == set()
    assert store.artifacts_in_use() == {"1", "2", "3"}


def test_the_files_have_a_size_where_there_are_any(store: Store) -> None:
    store.write([new_job("a")])
    assert (store.file_bytes > 0) == store.blocks
    assert (store.wal_bytes > 0) == store.blocks
