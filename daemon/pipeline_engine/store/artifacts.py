"""Artifacts: files beside the database, named by the SHA-256 of their bytes."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pipeline_engine.errors import StoreError, StoreFullError
from pipeline_engine.models import JobId

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}

log = logging.getLogger(__name__)


class ArtifactFiles:
    """The artifacts of a data directory. A file is whole and synced before its name exists.

    A job holds what it saves until it is released: until then the file stays, although no job in the store refers to
    it yet. What a job has let go, or had when it was deleted, is in doubt: `remove_doubtful` removes it unless the
    store has a use for it. Methods that touch the disk block; all may be called from any thread.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()  # between the decision that a file may go, and somebody who begins to hold it
        self._held: dict[JobId, set[str]] = {}
        self._doubtful: set[str] = set()
        self._drafts: set[Path] = set()
        self._used_bytes = 0
        self._failures: list[StoreError] = []

    def path(self, sha256: str) -> Path:
        return self._directory / sha256[:2] / sha256

    @property
    def used_bytes(self) -> int:
        """What all artifacts hold; known once `remove_unused` has looked. Does not block."""
        return self._used_bytes

    @property
    def failure(self) -> StoreError | None:
        """Why artifacts cannot be kept now: somebody is waiting to keep one (see `waiting`)."""
        # A new one each time: an exception that is raised again and again keeps all the frames it passed through.
        return type(self._failures[0])(self._failures[0].message) if self._failures else None

    @contextmanager
    def waiting(self, failure: StoreError) -> Iterator[None]:
        """In the block, somebody who met this failure waits until it is over."""
        self._failures.append(failure)
        try:
            yield
        finally:
            self._failures.remove(failure)

    # keeping

    def save(self, data: bytes, *, job_id: JobId) -> str:
        """Keep the bytes, which the job holds from now on; the answer is their SHA-256 in hex. Raises StoreError."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.hold(job_id, [sha256])
        path = self.path(sha256)
        with _mapped_errors(len(data)):
            if path.exists():
                _sync_directory(path.parent)  # it may be there because syncing is what failed
                return sha256
        with self.draft() as draft:
            draft.write(data)
            draft.keep()
        return sha256

    @contextmanager
    def draft(self) -> Iterator[Draft]:
        """An artifact that is written piece by piece; unless it is kept, nothing of it stays. Raises StoreError."""
        temporary = self._directory / f".{secrets.token_hex(8)}"
        with self._lock:
            self._drafts.add(temporary)
        try:
            with _mapped_errors(0):
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                file = os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
            draft = Draft(self, file, temporary)
            try:
                yield draft
            finally:
                with suppress(OSError):  # what cannot be written out need not be
                    file.close()
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
        finally:
            with self._lock:
                self._drafts.discard(temporary)

    def place(self, draft: Path, path: Path, *, size: int) -> None:
        """Give a draft that is whole its name, and count it unless another of the same bytes was faster."""
        with self._lock:
            is_new = not path.exists()
            draft.replace(path)
            if is_new:
                self._used_bytes += size

    # holding

    def hold(self, job_id: JobId, sha256s: Iterable[str]) -> None:
        """Keep these files as long as the job runs. Does not block."""
        with self._lock:
            self._held.setdefault(job_id, set()).update(sha256s)

    def release(self, job_id: JobId) -> None:
        """The job is over: what it held is in doubt. Does not block."""
        with self._lock:
            self._doubtful |= self._held.pop(job_id, set())

    def doubt(self, sha256s: Iterable[str]) -> None:
        """Jobs that had these were deleted. Does not block."""
        with self._lock:
            self._doubtful.update(sha256s)

    # removing

    @property
    def doubtful(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self._doubtful)

    def remove_doubtful(self, in_use: Callable[[Collection[str]], Collection[str]]) -> int:
        """Remove what is in doubt, but for what `in_use` gives of it and what somebody holds; how many files."""
        with self._lock:
            doubtful, self._doubtful = self._doubtful, set()
        try:
            used = in_use(doubtful)
        except BaseException:
            self.doubt(doubtful)
            raise
        return sum(self._remove(sha256) for sha256 in doubtful if sha256 not in used)

    def remove_unused(self, used: Collection[str]) -> int:
        """Remove all that is not `used` and that nobody holds, and what a crash left half-written; how many files.

        What is in doubt stays: jobs that ended after `used` was read may have it.
        """
        removed = 0
        total = 0
        for path in [*self._directory.glob(".*"), *self._directory.glob("*/*")]:
            with suppress(FileNotFoundError):
                size = path.stat().st_size
                if path.name.startswith("."):
                    removed += self._remove_leftover(path)
                elif path.name in used or not self._remove(path.name):
                    total += size
                else:
                    removed += 1
        with self._lock:
            self._used_bytes = total
        return removed

    def _remove(self, sha256: str) -> bool:
        path = self.path(sha256)
        with self._lock:
            # In doubt again: a job let it go after the store was asked, so the store must be asked once more.
            if sha256 in self._doubtful or any(sha256 in held for held in self._held.values()):
                return False
            try:
                size = path.stat().st_size
                path.unlink()
            except FileNotFoundError:
                return False
            except OSError as exc:
                log.warning("an artifact that no job has cannot be removed: %s: %s", path, exc.strerror)
                return False
            self._used_bytes -= size
        return True

    def _remove_leftover(self, path: Path) -> bool:
        with self._lock:
            if path in self._drafts:
                return False
            path.unlink()
        return True


class Draft:
    """An artifact that is being written."""

    def __init__(self, files: ArtifactFiles, file: BinaryIO, temporary: Path) -> None:
        self._files = files
        self._file = file
        self._temporary = temporary
        self._hash = hashlib.sha256()
        self._size = 0

    @property
    def sha256(self) -> str:
        """Of what has been written so far, in hex."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        self._size += len(data)
        self._hash.update(data)
        with _mapped_errors(self._size):
            self._file.write(data)

    def keep(self) -> None:
        """It is whole: give it its name."""
        path = self._files.path(self.sha256)
        with _mapped_errors(self._size):
            self._file.flush()
            os.fsync(self._file.fileno())
            if not path.parent.is_dir():
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _sync_directory(path.parent.parent)
            self._files.place(self._temporary, path, size=self._size)
            _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _mapped_errors(size: int) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        kind = StoreFullError if exc.errno in NO_SPACE else StoreError
        what = f"an artifact of {size} bytes" if size else "an artifact"
        raise kind(f"{what} cannot be kept: {exc.strerror}") from exc
