"""Each earlier schema becomes the present one, with what was in it."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from pipeline_engine.errors import StoreError
from pipeline_engine.models import JobId, JobStatus
from pipeline_engine.store.base import EventRecord, JobChange, JobFilter, NewJob
from pipeline_engine.store.database import OLDEST_READABLE, SCHEMA_VERSION
from pipeline_engine.store.sqlite import open_sqlite_store, open_sqlite_store_to_read

# A copy of the schema of each version, as it was released: never changed, and one more with each migration.
SCHEMAS = Path(__file__).parent / "schemas"
VERSIONS = sorted(int(file.stem) for file in SCHEMAS.glob("*.sql"))

# What every version has been able to hold.
ROWS = """
INSERT INTO jobs (number, id, status, pipeline_type, priority, created_at, finished_at, last_seq, job, definition, inline,
                  state)
VALUES (1, 'job_old', 'succeeded', 'p', 0, '2026-01-01T00:00:00.000000Z', '2026-01-01T00:00:01.000Z', 2, x'7b7d', x'7b7d', 0,
        x''),
       (2, 'job_queued', 'queued', 'p', 0, '2026-01-01T00:00:02.000000Z', NULL, 1, x'7b7d', x'7b7d', 0, x'');
INSERT INTO events (id, name, line)
VALUES ((1 << 32) | 1, 'job_queued', x'6f6e65'), ((1 << 32) | 2, 'stream_finished', x'74776f'), ((2 << 32) | 1, 'job_queued', x'78');
INSERT INTO labels (name, value, job) VALUES ('k', 'v', 1);
INSERT INTO idempotency (key, body_hash, job_id, used_at) VALUES ('again', x'00', 'job_old', 1.0);
"""


def schema_of(path: Path) -> set[tuple[str, ...]]:
    connection = apsw.Connection(str(path))
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    connection.close()
    return {(str(kind), str(name), str(table), " ".join(str(sql).split())) for kind, name, table, sql in rows}


def make_old(path: Path, version: int) -> None:
    connection = apsw.Connection(str(path))
    connection.execute((SCHEMAS / f"{version}.sql").read_text(encoding="utf-8"))
    connection.execute(ROWS)
    connection.pragma("user_version", version)
    connection.close()


def test_each_version_of_the_schema_has_its_copy() -> None:
    assert list(range(1, SCHEMA_VERSION + 1)) == VERSIONS


@pytest.mark.parametrize("version", [version for version in VERSIONS if version >= OLDEST_READABLE])
def test_an_old_database_can_be_read_as_it_is(tmp_path: Path, version: int) -> None:
    make_old(tmp_path / "old.db", version)
    before = schema_of(tmp_path / "old.db")
    store = open_sqlite_store_to_read(tmp_path / "old.db")
    # All that an export reads.
    assert [summary.number for summary in store.list_jobs(JobFilter(labels={"k": "v"}))] == [1]
    job_id = JobId("job_old")
    record = store.get_job(job_id)
    assert record is not None
    assert [event.line for event in store.read_events(job_id)] == [b"one", b"two"]
    assert (store.read_checkpoints(job_id), store.artifacts_of([job_id])) == ([], [])
    store.close()
    assert schema_of(tmp_path / "old.db") == before


@pytest.mark.parametrize("version", [OLDEST_READABLE - 1, SCHEMA_VERSION + 1])
def test_a_database_of_another_schema_is_not_read(tmp_path: Path, version: int) -> None:
    make_old(tmp_path / "old.db", SCHEMA_VERSION)
    connection = apsw.Connection(str(tmp_path / "old.db"))
    connection.pragma("user_version", version)
    connection.close()
    with pytest.raises(StoreError, match=f"it is of schema {version}, not {OLDEST_READABLE} to {SCHEMA_VERSION}; a "):
        open_sqlite_store_to_read(tmp_path / "old.db")


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_database_is_opened_with_all_that_it_holds(tmp_path: Path, version: int) -> None:
    make_old(tmp_path / "old.db", version)
    open_sqlite_store(tmp_path / "new.db").close()
    store = open_sqlite_store(tmp_path / "old.db")
    assert schema_of(tmp_path / "old.db") == schema_of(tmp_path / "new.db")
    assert store._writer.pragma("user_version") == SCHEMA_VERSION
    assert store._writer.pragma("integrity_check") == "ok"
    assert [event.line for event in store.read_events(JobId("job_old"))] == [b"one", b"two"]
    assert [record.job_id for record in store.unfinished_jobs()] == ["job_queued"]
    assert store.find_idempotency("again") == (b"\0", "job_old")
    new = NewJob(pipeline_type="p", priority=0, labels={}, created_at="", definition=b"{}")
    store.write(
        [
            JobChange(
                job_id=JobId("job_new"),
                new=new,
                events=[EventRecord(1, "job_queued", b"y")],
                status=JobStatus.QUEUED,
                job=b"{}",
            )
        ]
    )
    assert [summary.number for summary in store.list_jobs(JobFilter())] == [3, 2, 1]
    store.close()
