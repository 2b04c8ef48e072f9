"""Writes finished jobs into an archive."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO

import msgspec

from pipeline_engine.archive.records import (
    FORMAT,
    PIECE_BYTES,
    VERSION,
    Checkpoint,
    End,
    Execution,
    Header,
    JobEnd,
    JobEvent,
    JobStart,
    piece_of_artifact,
    record_line,
)
from pipeline_engine.decoding import from_stored_json, to_json
from pipeline_engine.models import Job, JobId, PipelineDef
from pipeline_engine.store.artifacts import ArtifactFiles
from pipeline_engine.store.base import JobFilter, JobRecord, Store

PAGE = 200  # jobs that are listed at a time
SPOOL_BYTES = 16 * 1024 * 1024  # of one job in memory; a larger one waits in a temporary file
TRIES = 3  # at a job from which a daemon prunes at the same moment


@dataclass(slots=True)
class ExportReport:
    """How many jobs were written, and why others were left out."""

    exported: int = 0
    left_out: dict[JobId, str] = field(default_factory=dict)


class _LeftOutError(Exception):
    """The job cannot be exported whole; the message says why."""


class _ChangedError(Exception):
    """Something was removed from the job while it was read."""


def finished_jobs(store: Store, wanted: JobFilter) -> Iterator[JobId]:
    """The jobs that an export with this filter writes, in the order in which they were accepted."""
    page = replace(wanted, before=None, after=0, limit=PAGE)
    while found := store.list_jobs(page):
        for summary in found:
            job = from_stored_json(summary.job, Job)
            if job.status.is_final:
                yield job.id
        page = replace(page, after=found[-1].number)


def export_jobs(store: Store, files: ArtifactFiles, job_ids: Iterable[JobId], out: BinaryIO) -> ExportReport:
    """Write an archive of these jobs. A daemon may use the store meanwhile: each job is written whole, or left out.

    Memory does not grow with the number of jobs, nor with that of a job's events. Raises StoreError, and OSError when
    `out` cannot be written.
    """
    report = ExportReport()
    out.write(record_line(Header(format=FORMAT, version=VERSION)))
    for job_id in job_ids:
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
            try:
                _write_whole(store, files, job_id, spool)
            except _LeftOutError as exc:
                report.left_out[job_id] = str(exc)
                continue
            spool.seek(0)
            shutil.copyfileobj(spool, out)
        report.exported += 1
    out.write(record_line(End(jobs=report.exported)))
    return report


def _write_whole(
    store: Store, files: ArtifactFiles, job_id: JobId, spool: tempfile.SpooledTemporaryFile[bytes]
) -> None:
    for _ in range(TRIES):
        spool.seek(0)
        spool.truncate()
        try:
            digest = hashlib.sha256()
            for line in _lines_of_job(store, files, job_id):
                digest.update(line)
                spool.write(line)
        except _ChangedError:
            continue
        spool.write(record_line(JobEnd(job_id=job_id, sha256=digest.hexdigest())))
        return
    raise _LeftOutError("it is being pruned; try again")


def _lines_of_job(store: Store, files: ArtifactFiles, job_id: JobId) -> Iterator[bytes]:
    record = store.get_job(job_id)
    if record is None:
        raise _LeftOutError("there is no such job")
    if not record.status.is_final:
        raise _LeftOutError(f"it is {record.status}; only finished jobs are exported")
    artifacts = store.artifacts_of([job_id])
    yield record_line(
        JobStart(
            job=msgspec.Raw(record.job),
            definition=msgspec.Raw(_without_secrets(record.definition)),
            inline=record.inline,
            pruned_seq=record.first_seq - 1,
            artifacts=artifacts,
        )
    )
    for text, position in zip(record.executions, _positions(record), strict=True):
        yield record_line(Execution(position=position, execution=msgspec.Raw(text)))
    for point in store.read_checkpoints(job_id):
        raw = msgspec.Raw(point.checkpoint)
        yield record_line(Checkpoint(position=point.position, shard=point.index, checkpoint=raw))
    for sha256 in artifacts:
        yield from _lines_of_artifact(files, sha256)
    # The events come last: that all of them are there shows that nothing before was removed meanwhile.
    yield from _lines_of_events(store, record)


def _without_secrets(definition: bytes) -> bytes:
    """The definition as the store has it, but for the values of headers, which are `***`."""
    return to_json(from_stored_json(definition, PipelineDef))


class _StepOfExecution(msgspec.Struct):
    step_id: str


def _positions(record: JobRecord) -> list[int]:
    places = {step.id: place for place, step in enumerate(from_stored_json(record.definition, PipelineDef).steps)}
    return [places[from_stored_json(text, _StepOfExecution).step_id] for text in record.executions]  # type: ignore[index]


def _lines_of_artifact(files: ArtifactFiles, sha256: str) -> Iterator[bytes]:
    try:
        with files.path(sha256).open("rb") as file:
            found = hashlib.sha256()
            piece = file.read(PIECE_BYTES)
            while True:
                found.update(piece)
                yield record_line(piece_of_artifact(sha256, piece))
                piece = file.read(PIECE_BYTES)
                if not piece:
                    break
    except OSError as exc:
        raise _LeftOutError(f"its artifact {sha256} cannot be read: {exc.strerror}") from exc
    if found.hexdigest() != sha256:
        raise _LeftOutError(f"its artifact {sha256} is damaged")


def _lines_of_events(store: Store, record: JobRecord) -> Iterator[bytes]:
    seq, pruned_seq = 0, record.first_seq - 1
    while events := store.read_events(record.job_id, after_seq=seq):
        for event in events:
            if event.seq != seq + 1 and event.seq - 1 > pruned_seq:
                raise _ChangedError
            seq = event.seq
            yield record_line(JobEvent(event=msgspec.Raw(event.line.rstrip(b"\n"))))
    if seq != record.last_seq:
        raise _ChangedError
