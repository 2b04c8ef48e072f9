"""Turns the records of one job in an archive into what the store is to write, and checks that they are whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from pipeline_engine.archive.records import (
    ArtifactPiece,
    BrokenLineError,
    Checkpoint,
    End,
    Execution,
    Header,
    JobEnd,
    JobEvent,
    JobStart,
    Record,
    RecordReader,
)
from pipeline_engine.decoding import from_stored_json, to_stored_json
from pipeline_engine.events import TERMINAL_EVENTS, EventName, event_line
from pipeline_engine.models import Job, PipelineDef, StepExecution, StepId, StoredCheckpoint
from pipeline_engine.pipeline import check
from pipeline_engine.steps.context import artifact_ids
from pipeline_engine.store.age_clock import seconds_of, to_stamp
from pipeline_engine.store.artifacts import ArtifactFiles
from pipeline_engine.store.base import (
    CheckpointRecord,
    EventRecord,
    ExecutionRecord,
    JobChange,
    NewJob,
)

BATCH_BYTES = 256 * 1024  # of events that are handed on together

_JOB_ID = re.compile(r"job_[0-9a-z]{26}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAMES = frozenset(value for name, value in vars(EventName).items() if name.isupper())
_PLAIN = re.compile(r"[^\x00-\x1f\"\\]*")  # what may stand in JSON as it is

T = TypeVar("T")


class _EventData(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seq: int
    event: str
    job_id: str
    ts: str
    data: msgspec.Raw


class JobReading:
    """One job of an archive, read once. All errors are BrokenLineErrors and name a line.

    `now` is the age clock's time: nothing has ended later than that. Artifacts are kept as they come, and
    held by the job.
    """

    def __init__(self, start: JobStart, records: RecordReader, *, files: ArtifactFiles, now: float) -> None:
        self._records = records
        self._start = start
        self._files = files
        self._now = now
        self.job = job = self._decode(bytes(start.job), Job)
        self._require(_JOB_ID.fullmatch(job.id) is not None, f"{job.id[:60]!r} is not the id of a job")
        self._require(job.status.is_final, f"the job is {job.status}; only finished jobs are imported")
        self._definition = self._decode(bytes(start.definition), PipelineDef)
        for problem in check(self._definition):
            self._require(False, f"the definition cannot be used: {problem}")
        self._places = {step.id: place for place, step in enumerate(self._definition.steps)}
        self._require(0 <= start.pruned_seq < job.last_seq, "pruned_seq is not within the events")
        for sha256 in start.artifacts:
            self._require(_SHA256.fullmatch(sha256) is not None, f"{sha256[:80]!r} is not the name of an artifact")
        self.ended = self._ended()
        self._missing = set(start.artifacts)
        self._points: set[tuple[int, int]] = set()
        self._seq = 0
        self._last_names: list[str] = []

    def changes(self) -> Iterator[JobChange]:
        """What makes the job, for Store.write."""
        job, start = self.job, self._start
        yield JobChange(
            job_id=job.id,
            new=NewJob(
                pipeline_type=job.pipeline_type,
                inline=start.inline,
                priority=job.priority,
                labels=job.labels,
                created_at=job.created_at,
                definition=to_stored_json(self._definition),
            ),
        )
        events: list[EventRecord] = []
        size = 0
        while not isinstance(record := self._next(), JobEnd):
            match record:
                case Execution():
                    yield JobChange(job_id=job.id, executions=[self._execution(record)])
                case Checkpoint():
                    yield JobChange(job_id=job.id, checkpoints=[self._checkpoint(record)])
                case ArtifactPiece():
                    self._take_artifact(record)
                case JobEvent():
                    events.append(self._event(record))
                    size += len(events[-1].line)
                    if size > BATCH_BYTES:
                        yield JobChange(job_id=job.id, events=events)
                        events, size = [], 0
        self._check_end(record)
        yield JobChange(
            job_id=job.id,
            events=events,
            status=job.status,
            job=bytes(start.job),
            artifacts=start.artifacts,
            finished_at=to_stamp(self.ended),
            pruned_seq=start.pruned_seq,
        )

    def _next(self) -> Execution | Checkpoint | ArtifactPiece | JobEvent | JobEnd:
        record = self._records.take()
        if record is None:
            raise BrokenLineError(self._records.line, f"the archive ends in the middle of {self.job.id}")
        if isinstance(record, JobStart | Header | End):
            self._records.give_back(record)
            raise BrokenLineError(self._records.line, f"{self.job.id} ends without its job_end")
        return record

    def _require(self, condition: object, message: str) -> None:
        if not condition:
            self._fail(message)

    def _fail(self, message: str) -> Any:
        raise BrokenLineError(self._records.line, message)

    def _decode(self, text: bytes, type_: type[T]) -> T:
        try:
            return from_stored_json(text, type_)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise BrokenLineError(self._records.line, f"is not what it should be: {exc}") from None

    def _ended(self) -> float:
        try:
            return min(seconds_of(self.job.finished_at or ""), self._now)
        except ValueError:
            raise BrokenLineError(self._records.line, "the job does not say when it ended") from None

    # each kind of record

    def _place(self, step_id: StepId, position: int) -> int:
        self._require(self._places.get(step_id) == position, f"step {step_id!r} does not stand at place {position}")
        return position

    def _execution(self, record: Execution) -> ExecutionRecord:
        execution = self._decode(bytes(record.execution), StepExecution)
        return ExecutionRecord(self._place(execution.step_id, record.position), bytes(record.execution))

    def _checkpoint(self, record: Checkpoint) -> CheckpointRecord:
        point = self._decode(bytes(record.checkpoint), StoredCheckpoint)
        self._require(point.job_id == self.job.id, f"the checkpoint is of {point.job_id[:60]!r}")
        key = (self._place(point.step_id, record.position), record.shard)
        self._require(key not in self._points and record.shard >= 0, "there is a checkpoint of this shard already")
        self._points.add(key)
        for sha256 in artifact_ids(point.result) if point.result is not None else ():
            self._require(sha256 in self._start.artifacts, f"the job does not bring its artifact {sha256[:80]!r}")
        return CheckpointRecord(*key, bytes(record.checkpoint))

    def _take_artifact(self, first: ArtifactPiece) -> None:
        self._require(first.sha256 in self._missing, f"the job has no artifact {first.sha256[:80]!r}, or had it before")
        self._missing.discard(first.sha256)
        record: Record | None = first
        with self._files.draft() as draft:
            while isinstance(record, ArtifactPiece) and record.sha256 == first.sha256:
                try:
                    draft.write(record.content())
                except ValueError:
                    self._fail("the data are not base64")
                record = self._records.take()
            if record is not None:
                self._records.give_back(record)
            self._require(draft.sha256 == first.sha256, f"the bytes before are not those of artifact {first.sha256}")
            self._files.hold(self.job.id, [first.sha256])
            draft.keep()

    def _event(self, record: JobEvent) -> EventRecord:
        event = self._decode(bytes(record.event), _EventData)
        self._require(self._seq > 0 or event.event == EventName.JOB_QUEUED, "the first event is not job_queued")
        expected = self._seq + 1
        gap_is_pruned = self._seq < event.seq <= self._start.pruned_seq + 1
        self._require(event.seq == expected or gap_is_pruned, f"the event has seq {event.seq}; {expected} is expected")
        self._require(event.job_id == self.job.id, f"the event is of {event.job_id[:60]!r}")
        self._require(event.event in _NAMES, f"{event.event[:60]!r} is not the name of an event")
        self._require(_PLAIN.fullmatch(event.ts) is not None, "ts is not a time")
        if event.seq == 1 or event.event in TERMINAL_EVENTS.values():
            job = self._decode(bytes(event.data), Job)
            self._require(job.id == self.job.id, f"the event tells of {job.id[:60]!r}")
            self._require(
                event.seq == 1 or job.status is self.job.status, f"the event says that the job is {job.status}"
            )
        self._seq = event.seq
        self._last_names = [*self._last_names[-1:], event.event]
        line = event_line(event.seq, event.event, self.job.id, event.ts, bytes(event.data))
        return EventRecord(event.seq, event.event, line)

    def _check_end(self, record: JobEnd) -> None:
        self._require(record.job_id == self.job.id, f"this is the end of {record.job_id[:60]!r}, not of {self.job.id}")
        self._require(
            record.sha256 == self._records.digest, f"the lines of {self.job.id} are not those that were written"
        )
        self._require(not self._missing, f"the artifacts are missing: {', '.join(sorted(self._missing))}")
        self._require(
            self._seq == self.job.last_seq
            and self._last_names == [TERMINAL_EVENTS[self.job.status], EventName.STREAM_FINISHED],
            f"the events of {self.job.id} end at {self._seq}; its last is {self.job.last_seq}",
        )
