"""The Store protocol: what is written together, and what can be read back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from pipeline_engine.models import JobId, JobStatus

# What comes with every event is a struct of msgspec, which is made several times as fast as a dataclass.


class EventRecord(msgspec.Struct, frozen=True, gc=False):
    """One event; `line` is its JSON text with the newline, as followers receive it."""

    seq: int
    name: str
    line: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """What is written once, when a job is accepted; `inline` says that the request brought the definition."""

    pipeline_type: str
    inline: bool = False
    priority: int
    labels: dict[str, str]
    created_at: str
    definition: bytes


class ExecutionRecord(msgspec.Struct, frozen=True, gc=False):
    """A step execution as JSON, and the place of its step in the definition."""

    position: int
    execution: bytes


class CheckpointRecord(msgspec.Struct, frozen=True, gc=False):
    """A finished item as JSON (a StepCheckpoint), and its place: the step's in the definition, the shard's in the step."""

    position: int
    index: int
    checkpoint: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyRecord:
    """That a key was used for a body, and when (seconds since the epoch)."""

    key: str
    body_hash: bytes
    used_at: float


class JobChange(msgspec.Struct, frozen=True, kw_only=True):
    """All that one append changes: written whole or not at all.

    `finished_at` (RFC 3339, see AgeClock) comes with a final status; without it the time of the write is taken. Only a
    job that ran elsewhere brings `pruned_seq`.
    """

    job_id: JobId
    events: Sequence[EventRecord] = ()
    new: NewJob | None = None
    status: JobStatus | None = None
    job: bytes | None = None
    state: bytes | None = None
    executions: Sequence[ExecutionRecord] = ()
    checkpoints: Sequence[CheckpointRecord] = ()
    artifacts: Sequence[str] = ()
    idempotency: IdempotencyRecord | None = None
    finished_at: str | None = None
    pruned_seq: int | None = None


@dataclass(frozen=True, slots=True)
class DeleteJobs:
    """Finished jobs are removed with all that belongs to them, but for their idempotency keys, which outlive them."""

    job_ids: Sequence[JobId]


@dataclass(frozen=True, slots=True)
class PruneChunks:
    """The token chunks of a finished job are removed from its events."""

    job_id: JobId


@dataclass(frozen=True, slots=True)
class PutDefinition:
    pipeline_type: str
    definition: bytes


@dataclass(frozen=True, slots=True)
class RemoveDefinition:
    pipeline_type: str


@dataclass(frozen=True, slots=True)
class PutProfile:
    """A profile as JSON; the key apart, so that nothing that shows the one shows the other."""

    profile_id: str
    profile: bytes
    secrets: bytes


@dataclass(frozen=True, slots=True)
class RemoveProfile:
    profile_id: str


@dataclass(frozen=True, slots=True)
class ForgetIdempotencyKeys:
    """Keys used before that time (seconds since the epoch) may be used anew."""

    used_before: float


Operation = (
    JobChange
    | DeleteJobs
    | PruneChunks
    | PutDefinition
    | RemoveDefinition
    | PutProfile
    | RemoveProfile
    | ForgetIdempotencyKeys
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A job as it is stored: JSON texts of the job (without input, result and steps), and of its step executions."""

    number: int
    job_id: JobId
    status: JobStatus
    priority: int
    last_seq: int
    first_seq: int
    job: bytes
    definition: bytes
    inline: bool
    state: bytes
    executions: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHead:
    """How far a job's events reach: those up to `pruned_seq` may be gone, the last is `last_seq`."""

    last_seq: int
    pruned_seq: int
    is_final: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs a list holds, newest first: `before` is the number of the last one that was seen.

    With `after`, the number of the last one that was seen, it holds the later ones, oldest first.
    """

    status: JobStatus | None = None
    pipeline_type: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    before: int | None = None
    after: int | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class JobSummary:
    number: int
    job: bytes


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """What retention looks at: when the job ended (RFC 3339)."""

    job_id: JobId
    finished_at: str


class Store(Protocol):
    """All methods block and may be called from any thread; `write` from one thread at a time.

    `blocks` says whether they may take long enough to need a thread. They raise StoreError when the disk or the
    database fails.
    """

    @property
    def blocks(self) -> bool: ...

    def write(self, operations: Iterable[Operation]) -> None:
        """Take the operations one by one and commit them together; if anything raises, iterating too, none is written.

        Without operations it only tries whether the store can be written.
        """
        ...

    def rest(self) -> bool:
        """Put in order what is best put in order while nothing is written; called as `write` is. False: try again."""
        ...

    def head(self, job_id: JobId) -> JobHead | None: ...

    def read_events(
        self,
        job_id: JobId,
        *,
        after_seq: int = 0,
        limit: int = 1000,
        max_bytes: int = 1 << 20,
        names: Collection[str] = (),
    ) -> list[EventRecord]:
        """The events after `after_seq`, in order: at least one if there is any, then while they fit the limits."""
        ...

    def last_event(self, job_id: JobId) -> EventRecord | None: ...

    def get_job(self, job_id: JobId) -> JobRecord | None: ...

    def list_jobs(self, wanted: JobFilter) -> list[JobSummary]: ...

    def unfinished_jobs(self) -> list[JobRecord]:
        """The queued and running jobs, oldest first, without their executions."""
        ...

    def read_checkpoints(self, job_id: JobId) -> list[CheckpointRecord]:
        """The checkpoints of a job, by step as defined and by shard."""
        ...

    def find_idempotency(self, key: str) -> tuple[bytes, JobId] | None:
        """The hash of the body that the key was used for, and the job, which may be deleted by now."""
        ...

    def oldest_idempotency(self) -> float | None:
        """When the key was used that was used first (seconds since the epoch)."""
        ...

    def definitions(self) -> dict[str, bytes]: ...

    def profiles(self) -> dict[str, tuple[bytes, bytes]]: ...

    def artifact_owned(self, job_id: JobId, sha256: str) -> bool: ...

    def artifacts_of(self, job_ids: Sequence[JobId]) -> list[str]:
        """The artifacts of these jobs, sorted."""
        ...

    def artifacts_in_use(self, among: Collection[str] | None = None) -> set[str]:
        """Those that any job has, of all or of the ones that are asked for."""
        ...

    def finished_jobs(self, *, limit: int, with_chunks: bool = False) -> list[FinishedJob]:
        """The finished jobs, those that ended first come first; or only those whose chunks are not pruned yet."""
        ...

    def last_finished_at(self) -> str | None:
        """When the job ended that ended last."""
        ...

    def count_finished(self) -> int: ...

    @property
    def used_bytes(self) -> int:
        """What the store held after the last write; does not block."""
        ...

    @property
    def file_bytes(self) -> int:
        """The size of the database's file, with what deleted jobs have left free in it; does not block."""
        ...

    @property
    def wal_bytes(self) -> int:
        """The size of the write-ahead log; does not block."""
        ...

    def close(self) -> None: ...
