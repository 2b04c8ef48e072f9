"""The store in a SQLite database: the only SQL of the engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import apsw

from pipeline_engine.errors import StoreError
from pipeline_engine.models import JobId, JobStatus
from pipeline_engine.store.base import (
    CheckpointRecord,
    DeleteJobs,
    EventRecord,
    FinishedJob,
    ForgetIdempotencyKeys,
    JobChange,
    JobFilter,
    JobHead,
    JobRecord,
    JobSummary,
    Operation,
    PruneChunks,
    PutDefinition,
    PutProfile,
    RemoveDefinition,
    RemoveProfile,
)
from pipeline_engine.store.database import (
    OLDEST_READABLE,
    SCHEMA_VERSION,
    connect,
    keep_wal,
    make_private,
    mapped_errors,
    migrate,
)
from pipeline_engine.store.free_pages import FreePages, make_shrinkable
from pipeline_engine.store.wal import Wal

CACHE_KIB = 8192  # KiB of page cache for the writer
READER_CACHE_KIB = 512  # KiB for each reader: followers read a job's events once, in order
SEQ_BITS = 32
INSERT_BYTES = 8 * 1024 * 1024  # of events that wait to be inserted together, at most
LOOKUP = 500  # values in one IN (...)

T = TypeVar("T")

_JOB_COLUMNS = "number, id, status, priority, last_seq, pruned_seq, job, definition, inline, state"


def open_sqlite_store(path: Path, *, durability: Literal["normal", "full"] = "normal") -> SqliteStore:
    """The store in the database file at `path`, made or migrated as needed; with `full`, commits survive power loss."""
    make_private(path)
    with mapped_errors():
        writer = connect(path)
        make_shrinkable(writer)  # before anything is written
        writer.pragma("journal_mode", "wal")
        writer.pragma("synchronous", "full" if durability == "full" else "normal")
        writer.pragma("cache_size", -CACHE_KIB)
        migrate(writer)
        keep_wal(writer)
    return SqliteStore(path, writer)


def open_sqlite_store_to_read(path: Path) -> SqliteStore:
    """The store in an existing database file, which another process may be writing; nothing is changed.

    Raises StoreError, also when there is no such file, or when its schema is one that cannot be read.
    """
    with mapped_errors():
        connection = connect(path, flags=apsw.SQLITE_OPEN_READONLY)
        version = connection.pragma("user_version")
        if not OLDEST_READABLE <= version <= SCHEMA_VERSION:
            connection.close()
            hint = "a newer version made it"
            if version < OLDEST_READABLE:
                hint = "a daemon of this version brings it up to date"
            words = f"it is of schema {version}, not {OLDEST_READABLE} to {SCHEMA_VERSION}; {hint}"
            raise StoreError(f"the database {path} cannot be read: {words}")
        return SqliteStore(path, connection)


class SqliteStore:
    """See the Store protocol. One connection writes; readers take theirs from a free list."""

    blocks = True

    def __init__(self, path: Path, writer: apsw.Connection) -> None:
        self._path = path
        self._writer = writer
        self._page_size = int(writer.pragma("page_size"))
        self._used_bytes = self._measure()
        self._numbers: dict[JobId, int] = {}  # of jobs that are being written
        self._wal = Wal(path, writer)
        self._free_pages = FreePages(writer)
        self._readers: list[apsw.Connection] = []
        self._lock = threading.Lock()
        self._closed = False

    # writing

    def write(self, operations: Iterable[Operation]) -> None:
        with mapped_errors():
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                if not self._apply(operations):
                    self._writer.pragma("user_version", SCHEMA_VERSION)  # an empty transaction would touch no disk
                self._writer.execute("COMMIT")
            except BaseException:
                self._numbers.clear()
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise
        # Not above: what is committed must not be taken for failed, and be written again.
        with suppress(apsw.Error):
            self._used_bytes = self._measure()

    def rest(self) -> bool:
        given_back, left = False, True
        with suppress(apsw.Error):
            given_back, left = self._free_pages.give_back()
        # The file itself is cut only when the log goes into it.
        return self._wal.empty(whatever_size=given_back) and not left

    def _apply(self, operations: Iterable[Operation]) -> int:
        """Returns how many operations there were."""
        # Events are the bulk of all writes: one executemany for the whole batch.
        events: list[tuple[int, str, bytes]] = []
        size = count = 0
        for operation in operations:
            count += 1
            if isinstance(operation, JobChange):
                self._apply_change(operation, events)
                size += sum(len(event.line) for event in operation.events)
            if size > INSERT_BYTES or not isinstance(operation, JobChange):
                self._insert_events(events)
                size = 0
            if not isinstance(operation, JobChange):
                self._apply_other(operation)
        self._insert_events(events)
        return count

    def _insert_events(self, events: list[tuple[int, str, bytes]]) -> None:
        if events:
            self._writer.executemany("INSERT INTO events (id, name, line) VALUES (?, ?, ?)", events)
            events.clear()

    def _apply_change(self, change: JobChange, events: list[tuple[int, str, bytes]]) -> None:
        execute = self._writer.execute
        if change.new is not None:
            new = change.new
            execute(
                "INSERT INTO jobs (id, status, pipeline_type, priority, created_at, job, definition, inline, state)"
                " VALUES (?, ?, ?, ?, ?, x'', ?, ?, x'')",
                (
                    change.job_id,
                    JobStatus.QUEUED,
                    new.pipeline_type,
                    new.priority,
                    new.created_at,
                    new.definition,
                    new.inline,
                ),
            )
            number = self._numbers[change.job_id] = self._writer.last_insert_rowid()
            for name, value in new.labels.items():
                execute("INSERT INTO labels (name, value, job) VALUES (?, ?, ?)", (name, value, number))
        else:
            number = self._number(change.job_id)
        base = number << SEQ_BITS
        events += [(base | event.seq, event.name, event.line) for event in change.events]
        self._update_job(change, number)
        for record in change.executions:
            execute(
                "INSERT INTO executions (job, position, execution) VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET execution = excluded.execution",
                (number, record.position, record.execution),
            )
        if change.checkpoints:
            self._writer.executemany(
                "INSERT OR REPLACE INTO checkpoints (job, position, shard, checkpoint) VALUES (?, ?, ?, ?)",
                [(number, point.position, point.index, point.checkpoint) for point in change.checkpoints],
            )
        for sha256 in change.artifacts:
            execute("INSERT OR IGNORE INTO artifacts (job, sha256) VALUES (?, ?)", (number, sha256))
        if change.idempotency is not None:
            used = change.idempotency
            execute(
                "INSERT INTO idempotency (key, body_hash, job_id, used_at) VALUES (?, ?, ?, ?)",
                (used.key, used.body_hash, change.job_id, used.used_at),
            )

    def _update_job(self, change: JobChange, number: int) -> None:
        assignments: list[str] = []
        values: list[Any] = []
        if change.events:
            assignments.append("last_seq = ?")
            values.append(change.events[-1].seq)
        if change.status is not None:
            assignments.append("status = ?")
            values.append(change.status)
            if change.status.is_final:
                assignments.append("finished_at = coalesce(?, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))")
                values.append(change.finished_at)
                self._numbers.pop(change.job_id, None)
        columns = (("job", change.job), ("state", change.state), ("pruned_seq", change.pruned_seq))
        for column, value in columns:
            if value is not None:
                assignments.append(f"{column} = ?")
                values.append(value)
        if assignments:
            self._writer.execute(f"UPDATE jobs SET {', '.join(assignments)} WHERE number = ?", (*values, number))

    def _number(self, job_id: JobId) -> int:
        number = self._numbers.get(job_id)
        if number is None:
            row = self._writer.execute("SELECT number, finished_at FROM jobs WHERE id = ?", (job_id,)).fetchone()
            if row is None:
                raise LookupError(f"there is no job {job_id} to change")
            number = int(row[0])
            if row[1] is None:  # of a job that is over, nothing would ever remove it
                self._numbers[job_id] = number
        return number

    def _apply_other(self, operation: Operation) -> None:
        execute = self._writer.execute
        match operation:
            case DeleteJobs(job_ids):
                for job_id in job_ids:
                    self._delete_job(job_id)
            case PruneChunks(job_id):
                self._prune_chunks(job_id)
            case PutDefinition(pipeline_type, definition):
                execute("INSERT OR REPLACE INTO definitions VALUES (?, ?)", (pipeline_type, definition))
            case RemoveDefinition(pipeline_type):
                execute("DELETE FROM definitions WHERE pipeline_type = ?", (pipeline_type,))
            case PutProfile(profile_id, profile, secrets):
                execute("INSERT OR REPLACE INTO profiles VALUES (?, ?, ?)", (profile_id, profile, secrets))
            case RemoveProfile(profile_id):
                execute("DELETE FROM profiles WHERE id = ?", (profile_id,))
            case ForgetIdempotencyKeys(used_before):
                execute("DELETE FROM idempotency WHERE used_at < ?", (used_before,))

    def _delete_job(self, job_id: JobId) -> None:
        row = self._writer.execute("SELECT number FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            return
        [number] = row
        low, high = number << SEQ_BITS, (number + 1) << SEQ_BITS
        self._writer.execute("DELETE FROM events WHERE id >= ? AND id < ?", (low, high))
        for table in ("executions", "checkpoints", "artifacts", "labels"):
            self._writer.execute(f"DELETE FROM {table} WHERE job = ?", (number,))
        self._writer.execute("DELETE FROM jobs WHERE number = ?", (number,))

    def _prune_chunks(self, job_id: JobId) -> None:
        row = self._writer.execute("SELECT number FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            return
        [number] = row
        low, high = number << SEQ_BITS, (number + 1) << SEQ_BITS
        where = "id >= ? AND id < ? AND name = 'provider_chunk'"
        [[last]] = self._writer.execute(f"SELECT max(id) FROM events WHERE {where}", (low, high)).fetchall()
        self._writer.execute(f"DELETE FROM events WHERE {where}", (low, high))
        pruned_seq = 0 if last is None else last - low
        self._writer.execute(
            "UPDATE jobs SET has_chunks = 0, pruned_seq = max(pruned_seq, ?) WHERE number = ?", (pruned_seq, number)
        )

    def _measure(self) -> int:
        return int(self._writer.pragma("page_count") - self._writer.pragma("freelist_count")) * self._page_size

    # reading

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    @property
    def file_bytes(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:  # somebody has removed it
            return 0

    @property
    def wal_bytes(self) -> int:
        try:
            return self._wal.size()
        except OSError:  # there is none before the first write
            return 0

    def head(self, job_id: JobId) -> JobHead | None:
        rows = self._read("SELECT last_seq, pruned_seq, status FROM jobs WHERE id = ?", (job_id,))
        if not rows:
            return None
        last_seq, pruned_seq, status = rows[0]
        return JobHead(last_seq=last_seq, pruned_seq=pruned_seq, is_final=JobStatus(status).is_final)

    def read_events(
        self,
        job_id: JobId,
        *,
        after_seq: int = 0,
        limit: int = 1000,
        max_bytes: int = 1 << 20,
        names: Collection[str] = (),
    ) -> list[EventRecord]:
        def read(connection: apsw.Connection) -> list[EventRecord]:
            row = connection.execute("SELECT number FROM jobs WHERE id = ?", (job_id,)).fetchone()
            if row is None:
                return []
            base = row[0] << SEQ_BITS
            marks = f" AND name IN ({', '.join('?' * len(names))})" if names else ""
            cursor = connection.execute(
                f"SELECT id, name, line FROM events WHERE id > ? AND id < ?{marks} ORDER BY id LIMIT ?",
                (base + after_seq, base + (1 << SEQ_BITS), *names, limit),
            )
            events: list[EventRecord] = []
            size = 0
            for event_id, name, line in cursor:
                size += len(line)
                if events and size > max_bytes:
                    break
                events.append(EventRecord(event_id - base, name, line))
            cursor.close()
            return events

        return self._with_reader(read)

    def last_event(self, job_id: JobId) -> EventRecord | None:
        rows = self._read(
            "SELECT e.id & ?, e.name, e.line FROM jobs j JOIN events e ON e.id = (j.number << ?) | j.last_seq"
            " WHERE j.id = ?",
            ((1 << SEQ_BITS) - 1, SEQ_BITS, job_id),
        )
        return EventRecord(*rows[0]) if rows else None

    def get_job(self, job_id: JobId) -> JobRecord | None:
        def read(connection: apsw.Connection) -> JobRecord | None:
            # One transaction, so that the job and its executions belong together.
            connection.execute("BEGIN")
            try:
                row = connection.execute(f"SELECT {_JOB_COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone()
                if row is None:
                    return None
                sql = "SELECT execution FROM executions WHERE job = ? ORDER BY position"
                return _job_record(row, [execution for (execution,) in connection.execute(sql, (row[0],))])
            finally:
                connection.execute("COMMIT")

        return self._with_reader(read)

    def list_jobs(self, wanted: JobFilter) -> list[JobSummary]:
        conditions, values = ["1"], list[Any]()
        if wanted.status is not None:
            conditions.append("status = ?")
            values.append(wanted.status)
        if wanted.pipeline_type is not None:
            conditions.append("pipeline_type = ?")
            values.append(wanted.pipeline_type)
        if wanted.before is not None:
            conditions.append("number < ?")
            values.append(wanted.before)
        if wanted.after is not None:
            conditions.append("number > ?")
            values.append(wanted.after)
        for name, value in wanted.labels.items():
            conditions.append("number IN (SELECT job FROM labels WHERE name = ? AND value = ?)")
            values += [name, value]
        order = "DESC" if wanted.after is None else "ASC"
        rows = self._read(
            f"SELECT number, job FROM jobs WHERE {' AND '.join(conditions)} ORDER BY number {order} LIMIT ?",
            (*values, wanted.limit),
        )
        return [JobSummary(number, job) for number, job in rows]

    def unfinished_jobs(self) -> list[JobRecord]:
        rows = self._read(f"SELECT {_JOB_COLUMNS} FROM jobs WHERE finished_at IS NULL ORDER BY number")
        return [_job_record(row, ()) for row in rows]

    def read_checkpoints(self, job_id: JobId) -> list[CheckpointRecord]:
        rows = self._read(
            "SELECT position, shard, checkpoint FROM checkpoints WHERE job = (SELECT number FROM jobs WHERE id = ?)"
            " ORDER BY position, shard",
            (job_id,),
        )
        return [CheckpointRecord(*row) for row in rows]

    def find_idempotency(self, key: str) -> tuple[bytes, JobId] | None:
        rows = self._read("SELECT body_hash, job_id FROM idempotency WHERE key = ?", (key,))
        return (rows[0][0], JobId(rows[0][1])) if rows else None

    def oldest_idempotency(self) -> float | None:
        oldest: float | None = self._read("SELECT min(used_at) FROM idempotency")[0][0]
        return oldest

    def definitions(self) -> dict[str, bytes]:
        return dict(self._read("SELECT pipeline_type, definition FROM definitions ORDER BY pipeline_type"))

    def profiles(self) -> dict[str, tuple[bytes, bytes]]:
        rows = self._read("SELECT id, profile, secrets FROM profiles ORDER BY id")
        return {profile_id: (profile, secrets) for profile_id, profile, secrets in rows}

    def artifact_owned(self, job_id: JobId, sha256: str) -> bool:
        sql = "SELECT 1 FROM artifacts WHERE job = (SELECT number FROM jobs WHERE id = ?) AND sha256 = ?"
        return bool(self._read(sql, (job_id, sha256)))

    def artifacts_of(self, job_ids: Sequence[JobId]) -> list[str]:
        numbers = "SELECT number FROM jobs WHERE id IN"
        return sorted(self._read_some(f"SELECT DISTINCT sha256 FROM artifacts WHERE job IN ({numbers} (%s))", job_ids))

    def artifacts_in_use(self, among: Collection[str] | None = None) -> set[str]:
        if among is None:
            return {sha256 for (sha256,) in self._read("SELECT DISTINCT sha256 FROM artifacts")}
        return self._read_some("SELECT DISTINCT sha256 FROM artifacts WHERE sha256 IN (%s)", list(among))

    def finished_jobs(self, *, limit: int, with_chunks: bool = False) -> list[FinishedJob]:
        wanted = "finished_at IS NOT NULL AND has_chunks" if with_chunks else "finished_at IS NOT NULL"
        rows = self._read(f"SELECT id, finished_at FROM jobs WHERE {wanted} ORDER BY finished_at LIMIT ?", (limit,))
        return [FinishedJob(JobId(job_id), finished_at) for job_id, finished_at in rows]

    def last_finished_at(self) -> str | None:
        newest: str | None = self._read("SELECT max(finished_at) FROM jobs WHERE finished_at IS NOT NULL")[0][0]
        return newest

    def count_finished(self) -> int:
        return int(self._read("SELECT count(*) FROM jobs WHERE finished_at IS NOT NULL")[0][0])

    def close(self) -> None:
        with self._lock:
            self._closed = True
            readers, self._readers = self._readers, []
        for reader in readers:
            reader.close()
        with mapped_errors():
            self._writer.close()

    def _read_some(self, sql: str, wanted: Sequence[str]) -> set[str]:
        """The texts that the statement finds, with the wanted values for its `%s`."""
        found: set[str] = set()
        for start in range(0, len(wanted), LOOKUP):
            values = tuple(wanted[start : start + LOOKUP])
            found.update(text for (text,) in self._read(sql % ", ".join("?" * len(values)), values))
        return found

    def _read(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        return self._with_reader(lambda connection: connection.execute(sql, values).fetchall())

    def _with_reader(self, read: Callable[[apsw.Connection], T]) -> T:
        with self._lock:
            if self._closed:
                raise StoreError("the store is closed")
            reader = self._readers.pop() if self._readers else None
        with mapped_errors():
            if reader is None:
                reader = connect(self._path, flags=apsw.SQLITE_OPEN_READONLY)
                reader.pragma("cache_size", -READER_CACHE_KIB)
            try:
                result = read(reader)
            except BaseException:
                reader.close()  # it may still be in a transaction, whose old view of the data would stay
                raise
            with self._lock:
                if not self._closed:
                    self._readers.append(reader)
                    return result
            reader.close()
            return result


def _job_record(row: tuple[Any, ...], executions: Sequence[bytes]) -> JobRecord:
    number, job_id, status, priority, last_seq, pruned_seq, job, definition, inline, state = row
    return JobRecord(
        number=number,
        job_id=JobId(job_id),
        status=JobStatus(status),
        priority=priority,
        last_seq=last_seq,
        first_seq=pruned_seq + 1,
        job=job,
        definition=definition,
        inline=bool(inline),
        state=state,
        executions=executions,
    )
