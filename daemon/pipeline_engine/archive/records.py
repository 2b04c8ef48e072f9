"""The records of an archive: one JSON object a line.

A header, then for each job a `job` record, its executions, checkpoints, artifacts (in pieces) and events, and `job_end`;
after the last job an `end`. Archives may be joined one after the other. What the store has as JSON stands in the
records as it is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from typing import BinaryIO

import msgspec

from pipeline_engine.models import JobId

FORMAT = "pipeline-engine-jobs"
VERSION = 1
PIECE_BYTES = 768 * 1024  # of an artifact in one record, before base64
MAX_LINE_BYTES = 1_000_000_000  # what SQLite takes as one value


class _Record(msgspec.Struct, frozen=True, tag_field="record", forbid_unknown_fields=True, kw_only=True):
    pass


class Header(_Record, frozen=True, tag="header", kw_only=True):
    format: str
    version: int


class JobStart(_Record, frozen=True, tag="job", kw_only=True):
    """A job without input, result and steps, and how it began: as its row in the store has it."""

    job: msgspec.Raw
    definition: msgspec.Raw
    inline: bool
    pruned_seq: int
    artifacts: list[str]


class Execution(_Record, frozen=True, tag="execution", kw_only=True):
    position: int
    execution: msgspec.Raw


class Checkpoint(_Record, frozen=True, tag="checkpoint", kw_only=True):
    position: int
    shard: int
    checkpoint: msgspec.Raw


class ArtifactPiece(_Record, frozen=True, tag="artifact", kw_only=True):
    sha256: str
    data: str

    def content(self) -> bytes:
        """Raises ValueError."""
        return base64.b64decode(self.data, validate=True)


class JobEvent(_Record, frozen=True, tag="event", kw_only=True):
    event: msgspec.Raw


class JobEnd(_Record, frozen=True, tag="job_end", kw_only=True):
    """`sha256` is that of all lines of the job before this one, so that none is lost, moved or changed unnoticed."""

    job_id: JobId
    sha256: str


class End(_Record, frozen=True, tag="end", kw_only=True):
    jobs: int


Record = Header | JobStart | Execution | Checkpoint | ArtifactPiece | JobEvent | JobEnd | End

_DECODER: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


def record_line(record: Record) -> bytes:
    return msgspec.json.encode(record) + b"\n"


def piece_of_artifact(sha256: str, data: bytes) -> ArtifactPiece:
    return ArtifactPiece(sha256=sha256, data=binascii.b2a_base64(data, newline=False).decode())


class BrokenLineError(Exception):
    """A line of an archive that cannot be used, with its number from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(slots=True)
class RecordReader:
    """Reads an archive record by record.

    `line` is the number of the last one; after a `job_end`, `digest` is the SHA-256 of the lines of its job.
    """

    file: BinaryIO
    line: int = 0
    digest: str = ""
    _hash: hashlib._Hash = field(default_factory=hashlib.sha256)
    _returned: Record | None = None

    def take(self) -> Record | None:
        """The next record; None at the end. Raises BrokenLineError, and goes on with the line after."""
        record, self._returned = self._returned, None
        if record is not None:
            return record
        text = self.file.readline(MAX_LINE_BYTES)
        if not text:
            return None
        self.line += 1
        if not text.endswith(b"\n") and len(text) == MAX_LINE_BYTES:
            while (rest := self.file.readline(PIECE_BYTES)) and not rest.endswith(b"\n"):
                pass
            raise BrokenLineError(self.line, f"is longer than {MAX_LINE_BYTES:,} bytes")
        try:
            record = _DECODER.decode(text)
        except UnicodeDecodeError:
            raise BrokenLineError(self.line, "is not UTF-8") from None
        except msgspec.MsgspecError as exc:
            raise BrokenLineError(self.line, f"is no record of an archive: {exc}") from None
        if isinstance(record, JobStart):
            self._hash = hashlib.sha256()
        elif isinstance(record, JobEnd):
            self.digest = self._hash.hexdigest()
        self._hash.update(text)
        return record

    def give_back(self, record: Record) -> None:
        """The next `take` gets it again."""
        self._returned = record

    def skip_job(self) -> None:
        """Pass over what is left of a job, whatever it is."""
        while True:
            try:
                record = self.take()
            except BrokenLineError:
                continue
            if record is None or isinstance(record, JobEnd):
                return
            if isinstance(record, JobStart | Header | End):
                self.give_back(record)
                return
