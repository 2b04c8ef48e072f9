"""Reads an archive into a store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import BinaryIO

from pipeline_engine.archive.job_reading import JobReading
from pipeline_engine.archive.records import (
    FORMAT,
    VERSION,
    BrokenLineError,
    End,
    Header,
    JobStart,
    Record,
    RecordReader,
)
from pipeline_engine.errors import InvalidRequestError, Problem
from pipeline_engine.models import JobId
from pipeline_engine.store.artifacts import ArtifactFiles
from pipeline_engine.store.base import Store


@dataclass(slots=True)
class ImportReport:
    """The jobs that came in, with the time when each ended (seconds since the epoch); those that were there already;
    and what is wrong with the others: line and message.
    """

    imported: dict[JobId, float] = field(default_factory=dict)
    present: list[JobId] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)


def import_jobs(store: Store, files: ArtifactFiles, file: BinaryIO, *, name: str, now: float) -> ImportReport:
    """Bring the jobs of an archive into the store: each whole and in one transaction, or not at all.

    `name` is what messages call the file, `now` the age clock's time. Memory is bounded by the longest line. Raises
    InvalidRequestError for a file that is no archive, and StoreError, after which the jobs before are in the store.
    """
    return _Import(store, files, RecordReader(file), now).run(name)


class _Import:
    def __init__(self, store: Store, files: ArtifactFiles, records: RecordReader, now: float) -> None:
        self._store = store
        self._files = files
        self._records = records
        self._now = now
        self._report = ImportReport()
        self._jobs = 0  # since the last header

    def run(self, name: str) -> ImportReport:
        try:
            self._check_header(self._records.take())
        except BrokenLineError as exc:
            raise InvalidRequestError([Problem(f"line {exc.line}", str(exc))], source=name) from None
        last: Record | None = None
        while True:
            try:
                record = self._records.take()
                if record is None:
                    break
                self._handle(record)
            except BrokenLineError as exc:
                self._report.refused.append((exc.line, str(exc)))
                self._records.skip_job()
            else:
                last = record
        if not isinstance(last, End):
            self._report.refused.append((self._records.line, "the archive has no end; it may have been cut"))
        return self._report

    def _check_header(self, record: Record | None) -> None:
        line = self._records.line
        if not isinstance(record, Header) or record.format != FORMAT:
            raise BrokenLineError(max(line, 1), "this is no archive of jobs; `pipeline-engine export` makes one")
        if record.version != VERSION:
            words = f"the archive is of version {record.version}; this version of Pipeline Engine knows {VERSION}"
            raise BrokenLineError(line, words)
        self._jobs = 0

    def _handle(self, record: Record) -> None:
        match record:
            case JobStart():
                self._jobs += 1
                self._import(record)
            case End(jobs=jobs):
                if jobs != self._jobs:
                    raise BrokenLineError(self._records.line, f"{jobs} jobs should stand before, not {self._jobs}")
            case Header():
                self._check_header(record)
            case _:
                raise BrokenLineError(self._records.line, "stands outside of a job")

    def _import(self, start: JobStart) -> None:
        reading = JobReading(start, self._records, files=self._files, now=self._now)
        job_id = reading.job.id
        if self._store.head(job_id) is not None:
            self._records.skip_job()
            self._report.present.append(job_id)
            return
        try:
            self._store.write(reading.changes())
        except BaseException:
            self._files.release(job_id)
            self._files.remove_doubtful(self._store.artifacts_in_use)
            raise
        self._files.release(job_id)
        self._report.imported[job_id] = reading.ended
