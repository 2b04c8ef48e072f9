"""The store in memory, for tests and for jobs that nobody needs to resume."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from pipeline_engine.models import JobId, JobStatus, now_rfc3339
from pipeline_engine.store.base import (
    CheckpointRecord,
    DeleteJobs,
    EventRecord,
    FinishedJob,
    ForgetIdempotencyKeys,
    IdempotencyRecord,
    JobChange,
    JobFilter,
    JobHead,
    JobRecord,
    JobSummary,
    NewJob,
    Operation,
    PruneChunks,
    PutDefinition,
    PutProfile,
    RemoveDefinition,
    RemoveProfile,
)


@dataclass(slots=True)
class _Job:
    number: int
    new: NewJob
    status: JobStatus = JobStatus.QUEUED
    finished_at: str | None = None
    pruned_seq: int = 0
    has_chunks: bool = True
    job: bytes = b""
    state: bytes = b""
    events: list[EventRecord] = field(default_factory=list)
    executions: dict[int, bytes] = field(default_factory=dict)
    checkpoints: dict[tuple[int, int], CheckpointRecord] = field(default_factory=dict)
    artifacts: set[str] = field(default_factory=set)

    @property
    def last_seq(self) -> int:
        return self.events[-1].seq if self.events else 0


class MemoryStore:
    """See the Store protocol. Nothing outlives the process."""

    blocks = False

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[JobId, _Job] = {}
        self._next_number = 1
        self._idempotency: dict[str, tuple[IdempotencyRecord, JobId]] = {}
        self._definitions: dict[str, bytes] = {}
        self._profiles: dict[str, tuple[bytes, bytes]] = {}

    def write(self, operations: Iterable[Operation]) -> None:
        taken = list(operations)
        with self._lock:
            for operation in taken:
                self._apply(operation)

    def rest(self) -> bool:
        return True

    def _apply(self, operation: Operation) -> None:
        match operation:
            case JobChange():
                self._apply_change(operation)
            case DeleteJobs(job_ids):
                for job_id in job_ids:
                    self._jobs.pop(job_id, None)
            case PruneChunks(job_id):
                job = self._jobs[job_id]
                job.has_chunks = False
                chunks = [event.seq for event in job.events if event.name == "provider_chunk"]
                if chunks:
                    job.events = [event for event in job.events if event.name != "provider_chunk"]
                    job.pruned_seq = chunks[-1]
            case PutDefinition(pipeline_type, definition):
                self._definitions[pipeline_type] = definition
            case RemoveDefinition(pipeline_type):
                self._definitions.pop(pipeline_type, None)
            case PutProfile(profile_id, profile, secrets):
                self._profiles[profile_id] = (profile, secrets)
            case RemoveProfile(profile_id):
                self._profiles.pop(profile_id, None)
            case ForgetIdempotencyKeys(used_before):
                self._idempotency = {k: v for k, v in self._idempotency.items() if v[0].used_at >= used_before}

    def _apply_change(self, change: JobChange) -> None:
        if change.new is not None:
            self._jobs[change.job_id] = _Job(number=self._next_number, new=change.new)
            self._next_number += 1
        job = self._jobs[change.job_id]
        job.events += change.events
        if change.status is not None:
            job.status = change.status
            if change.status.is_final:
                job.finished_at = change.finished_at or now_rfc3339()
        if change.pruned_seq is not None:
            job.pruned_seq = change.pruned_seq
        if change.job is not None:
            job.job = change.job
        if change.state is not None:
            job.state = change.state
        for record in change.executions:
            job.executions[record.position] = record.execution
        for point in change.checkpoints:
            job.checkpoints[point.position, point.index] = point
        job.artifacts.update(change.artifacts)
        if change.idempotency is not None:
            self._idempotency[change.idempotency.key] = (change.idempotency, change.job_id)

    def head(self, job_id: JobId) -> JobHead | None:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None:
                return None
            return JobHead(last_seq=job.last_seq, pruned_seq=job.pruned_seq, is_final=job.status.is_final)

    def read_events(
        self,
        job_id: JobId,
        *,
        after_seq: int = 0,
        limit: int = 1000,
        max_bytes: int = 1 << 20,
        names: Collection[str] = (),
    ) -> list[EventRecord]:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None:
                return []
            start = after_seq if not job.pruned_seq else 0  # unpruned, the event `seq` stands at index seq - 1
            events: list[EventRecord] = []
            size = 0
            for index in range(start, len(job.events)):
                event = job.events[index]
                if event.seq <= after_seq or (names and event.name not in names):
                    continue
                size += len(event.line)
                if len(events) >= limit or (events and size > max_bytes):
                    break
                events.append(event)
            return events

    def last_event(self, job_id: JobId) -> EventRecord | None:
        with self._lock:
            job = self._jobs.get(job_id)
            return job.events[-1] if job is not None and job.events else None

    def get_job(self, job_id: JobId) -> JobRecord | None:
        with self._lock:
            job = self._jobs.get(job_id)
            return None if job is None else _job_record(job_id, job)

    def list_jobs(self, wanted: JobFilter) -> list[JobSummary]:
        with self._lock:
            jobs = self._jobs.values()
            found = [
                JobSummary(job.number, job.job)
                for job in (reversed(jobs) if wanted.after is None else jobs)
                if (wanted.status is None or job.status is wanted.status)
                and (wanted.pipeline_type is None or job.new.pipeline_type == wanted.pipeline_type)
                and (wanted.before is None or job.number < wanted.before)
                and (wanted.after is None or job.number > wanted.after)
                and wanted.labels.items() <= job.new.labels.items()
            ]
            return found[: wanted.limit]

    def unfinished_jobs(self) -> list[JobRecord]:
        with self._lock:
            return [_job_record(job_id, job) for job_id, job in self._jobs.items() if job.finished_at is None]

    def read_checkpoints(self, job_id: JobId) -> list[CheckpointRecord]:
        with self._lock:
            job = self._jobs.get(job_id)
            return [] if job is None else [point for _, point in sorted(job.checkpoints.items())]

    def find_idempotency(self, key: str) -> tuple[bytes, JobId] | None:
        with self._lock:
            found = self._idempotency.get(key)
            return None if found is None else (found[0].body_hash, found[1])

    def oldest_idempotency(self) -> float | None:
        with self._lock:
            return min((record.used_at for record, _ in self._idempotency.values()), default=None)

    def definitions(self) -> dict[str, bytes]:
        with self._lock:
            return dict(sorted(self._definitions.items()))

    def profiles(self) -> dict[str, tuple[bytes, bytes]]:
        with self._lock:
            return dict(sorted(self._profiles.items()))

    def artifact_owned(self, job_id: JobId, sha256: str) -> bool:
        with self._lock:
            job = self._jobs.get(job_id)
            return job is not None and sha256 in job.artifacts

    def artifacts_of(self, job_ids: Sequence[JobId]) -> list[str]:
        with self._lock:
            found = [self._jobs[job_id].artifacts for job_id in job_ids if job_id in self._jobs]
            return sorted(set().union(*found))

    def artifacts_in_use(self, among: Collection[str] | None = None) -> set[str]:
        with self._lock:
            used = set().union(*(job.artifacts for job in self._jobs.values()))
            return used if among is None else used & set(among)

    def finished_jobs(self, *, limit: int, with_chunks: bool = False) -> list[FinishedJob]:
        with self._lock:
            finished = [
                FinishedJob(job_id, job.finished_at)
                for job_id, job in self._jobs.items()
                if job.finished_at is not None and (job.has_chunks or not with_chunks)
            ]
            return sorted(finished, key=lambda job: job.finished_at)[:limit]

    def last_finished_at(self) -> str | None:
        with self._lock:
            return max((job.finished_at for job in self._jobs.values() if job.finished_at is not None), default=None)

    def count_finished(self) -> int:
        with self._lock:
            return sum(job.finished_at is not None for job in self._jobs.values())

    @property
    def used_bytes(self) -> int:
        with self._lock:
            return sum(len(event.line) for job in self._jobs.values() for event in job.events)

    @property
    def file_bytes(self) -> int:
        return 0

    @property
    def wal_bytes(self) -> int:
        return 0

    def close(self) -> None:
        return None


def _job_record(job_id: JobId, job: _Job) -> JobRecord:
    return JobRecord(
        number=job.number,
        job_id=job_id,
        status=job.status,
        priority=job.new.priority,
        last_seq=job.last_seq,
        first_seq=job.pruned_seq + 1,
        job=job.job,
        definition=job.new.definition,
        inline=job.new.inline,
        state=job.state,
        executions=[execution for _, execution in sorted(job.executions.items())],
    )
