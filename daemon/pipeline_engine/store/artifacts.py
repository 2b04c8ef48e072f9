"""Artifacts: files beside the database, named by the SHA-256 of their bytes."""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path

from pipeline_engine.errors import StoreError, StoreFullError

NO_SPACE = {28, 122}  # ENOSPC, EDQUOT


class ArtifactFiles:
    """The artifacts of a data directory. A file is whole and synced before its name exists. All methods block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, sha256: str) -> Path:
        return self._directory / sha256[:2] / sha256

    def save(self, data: bytes) -> str:
        """Keep the bytes; the answer is their SHA-256 in hex. Raises StoreError."""
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.path(sha256)
        with suppress(FileNotFoundError):
            os.utime(path)  # young again: it may have been about to be removed as unused
            return sha256
        temporary = path.with_name(f".{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            self._sync_directory(path.parent)
        except OSError as exc:
            temporary.unlink(missing_ok=True)
            kind = StoreFullError if exc.errno in NO_SPACE else StoreError
            raise kind(f"an artifact of {len(data)} bytes cannot be kept: {exc.strerror}") from exc
        return sha256

    def remove_unused(self, used: set[str], *, older_than_s: float, now: float) -> int:
        """Remove what no job refers to any more and what a crash left half-written; the answer is how many files.

        Younger files are left alone: a job that is under way may be about to refer to them.
        """
        removed = 0
        for path in self._directory.glob("*/*"):
            try:
                if path.name not in used and now - path.stat().st_mtime > older_than_s:
                    path.unlink()
                    removed += 1
            except FileNotFoundError:
                continue
        return removed

    @staticmethod
    def _sync_directory(directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
