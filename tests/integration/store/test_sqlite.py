"""What only the database has: durability, privacy, errors of the disk, and a lock."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import apsw
import pytest

from pipeline_engine.errors import DataDirectoryInUseError, StoreError, StoreFullError
from pipeline_engine.models import JobId, JobStatus
from pipeline_engine.store import free_pages
from pipeline_engine.store.base import DeleteJobs, EventRecord, JobChange, NewJob
from pipeline_engine.store.database import SCHEMA_VERSION
from pipeline_engine.store.lock import hold_directory
from pipeline_engine.store.sqlite import SqliteStore, open_sqlite_store


def new_job(name: str, line: bytes = b"{}\n") -> JobChange:
    return JobChange(
        job_id=JobId(name),
        events=[EventRecord(1, "job_queued", line)],
        new=NewJob(pipeline_type="p", priority=0, labels={}, created_at="", definition=b"{}"),
        status=JobStatus.QUEUED,
        job=b"{}",
    )


def test_what_was_written_is_there_after_opening_again(tmp_path: Path) -> None:
    store = open_sqlite_store(tmp_path / "engine.db")
    store.write([new_job("a")])
    store.close()
    # On a full disk they could not be made again, and nothing could be read.
    assert {path.name: path.stat().st_size for path in tmp_path.glob("*-*")} == {
        "engine.db-wal": 0,
        "engine.db-shm": 32768,
    }
    store = open_sqlite_store(tmp_path / "engine.db", durability="full")
    assert store.head(JobId("a")) is not None
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.head(JobId("a"))


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    store = open_sqlite_store(tmp_path / "data" / "engine.db")
    store.write([new_job("a")])
    files = list((tmp_path / "data").iterdir())
    assert {file.name for file in files} >= {"engine.db", "engine.db-wal"}
    assert all(file.stat().st_mode & 0o077 == 0 for file in [*files, tmp_path / "data"])
    store.close()


def test_a_failed_batch_changes_nothing(tmp_path: Path) -> None:
    store = open_sqlite_store(tmp_path / "engine.db")
    store.write([new_job("a")])
    with pytest.raises(LookupError):
        store.write([new_job("b"), JobChange(job_id=JobId("ghost"))])
    assert store.head(JobId("b")) is None
    with pytest.raises(apsw.ConstraintError):
        store.write([new_job("c"), new_job("a")])
    assert store.head(JobId("c")) is None
    store.write([new_job("c")])
    assert store.head(JobId("c")) is not None
    store.close()


def test_a_full_database_is_told_apart_and_recovers(tmp_path: Path) -> None:
    store = open_sqlite_store(tmp_path / "engine.db")
    store.write([new_job("a")])
    store._writer.pragma("max_page_count", store._writer.pragma("page_count") + 1)
    with pytest.raises(StoreFullError):
        store.write([new_job("b", b"x" * 1_000_000)])
    assert store.head(JobId("a")) is not None
    assert store.head(JobId("b")) is None
    store._writer.pragma("max_page_count", 1_000_000)
    store.write([new_job("b", b"x" * 1_000_000)])
    assert len(store.read_events(JobId("b"))[0].line) == 1_000_000
    store.close()


def test_a_lock_held_by_another_process_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_sqlite_store(tmp_path / "engine.db")
    other = apsw.Connection(str(tmp_path / "engine.db"))
    other.execute("BEGIN IMMEDIATE")
    store._writer.set_busy_timeout(10)
    with pytest.raises(StoreError, match="locked"):
        store.write([new_job("a")])
    other.execute("ROLLBACK")
    store.write([new_job("a")])
    assert store.head(JobId("a")) is not None
    other.close()
    store.close()


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    open_sqlite_store(tmp_path / "engine.db").close()
    connection = apsw.Connection(str(tmp_path / "engine.db"))
    connection.pragma("user_version", SCHEMA_VERSION + 1)
    connection.close()
    with pytest.raises(StoreError, match="newer version"):
        open_sqlite_store(tmp_path / "engine.db")


def test_a_file_that_is_no_database_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "engine.db").write_bytes(b"this is not a database " * 100)
    with pytest.raises(StoreError, match="cannot be used"):
        open_sqlite_store(tmp_path / "engine.db")


def test_one_process_holds_a_data_directory(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from pipeline_engine.store.lock import hold_directory\n"
        "with hold_directory(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(DataDirectoryInUseError, match=f"in use by process {holder.pid}"), hold_directory(tmp_path):
        pass
    holder.kill()
    holder.wait(10)
    with hold_directory(tmp_path):
        pass
    holder.stdin.close()
    holder.stdout.close()


def test_a_data_directory_is_held_on_a_full_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with hold_directory(tmp_path), pytest.raises(DataDirectoryInUseError), hold_directory(tmp_path):
        pass


def fill_and_delete(store: SqliteStore) -> None:
    jobs = [JobId(f"job_{number}") for number in range(30)]
    for job_id in jobs:
        store.write([new_job(job_id, b"x" * 300_000)])
    store.write([DeleteJobs(jobs[:-1])])


def test_the_file_shrinks_again_while_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_pages, "KEPT_PAGES", 20)
    monkeypatch.setattr(free_pages, "STEP_PAGES", 500)
    store = open_sqlite_store(tmp_path / "engine.db")
    fill_and_delete(store)
    store.rest()
    sizes = [store.file_bytes]
    while not store.rest():
        sizes.append(store.file_bytes)
    assert len(sizes) > 2
    assert sizes == sorted(set(sizes), reverse=True)
    assert store.file_bytes < 2 * store.used_bytes < 1_000_000
    assert store._writer.pragma("integrity_check") == "ok"
    assert [event.line for event in store.read_events(JobId("job_29"))] == [b"x" * 300_000]
    store.close()


def test_a_file_from_before_it_could_shrink_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_pages, "KEPT_PAGES", 20)
    monkeypatch.setattr("pipeline_engine.store.sqlite.make_shrinkable", lambda _: None)
    open_sqlite_store(tmp_path / "engine.db").close()
    monkeypatch.undo()
    store = open_sqlite_store(tmp_path / "engine.db")
    fill_and_delete(store)
    assert store.rest()
    before = store.file_bytes
    assert store.rest()
    assert store.file_bytes == before > 8_000_000
    store.close()


def test_a_write_of_nothing_tells_whether_the_database_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline_engine.store.database.BUSY_TIMEOUT", 10)
    store = open_sqlite_store(tmp_path / "engine.db")
    wal = tmp_path / "engine.db-wal"
    before = wal.stat().st_size
    store.write([])
    assert wal.stat().st_size > before
    other = apsw.Connection(str(tmp_path / "engine.db"))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        store.write([])
    other.close()
    store.write([])
    store.close()


def test_what_is_committed_is_not_taken_for_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_sqlite_store(tmp_path / "engine.db")

    def fail() -> int:
        raise apsw.BusyError

    monkeypatch.setattr(store, "_measure", fail)
    store.write([new_job("a")])
    assert store.head(JobId("a")) is not None
    store.close()
