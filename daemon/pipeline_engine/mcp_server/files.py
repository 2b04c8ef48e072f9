"""Reads files for sources that name a path, and only below directories that the person who set it up has allowed."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import trio

from pipeline_engine.errors import InvalidRequestError, Problem

LARGEST = 16 * 1024 * 1024  # bytes; the daemon takes bodies of 32 MiB


class FileAccess:
    """The files below these directories; without any, none at all."""

    def __init__(self, directories: Sequence[Path] = ()) -> None:
        self._directories = tuple(directory.resolve() for directory in directories)
        self._limiter = trio.CapacityLimiter(1)

    @property
    def is_allowed(self) -> bool:
        return bool(self._directories)

    async def read(self, name: str, *, path: str) -> bytes:
        """The bytes of a file. A relative name is looked for in each directory.

        Links count as what they lead to. Raises InvalidRequestError, with `path` as the place of the argument.
        """
        try:
            return await trio.to_thread.run_sync(self._read, name, limiter=self._limiter)
        except _RefusedError as exc:
            raise InvalidRequestError([Problem(path, str(exc))]) from exc
        except OSError as exc:
            raise InvalidRequestError([Problem(path, f"cannot read {name}: {exc.strerror}")]) from exc
        except ValueError as exc:  # a NUL character
            raise InvalidRequestError([Problem(path, "is not the name of a file")]) from exc

    def _read(self, name: str) -> bytes:
        with open(self._find(name), "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _RefusedError(f"{name} is not a regular file")
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise _RefusedError(f"{name} is larger than {LARGEST // 1024**2} MiB")
        return data

    def _find(self, name: str) -> Path:
        if not self._directories:
            raise _RefusedError(
                "reading files is not allowed here; give the text as `content`, "
                "or have the server started with --allow-files DIRECTORY"
            )
        candidates = [(directory / name).resolve() for directory in self._directories]
        inside = [path for path in candidates if any(map(path.is_relative_to, self._directories))]
        if not inside:
            listed = ", ".join(map(str, self._directories))
            raise _RefusedError(f"{name} is outside of what may be read: {listed}")
        return next((path for path in inside if path.exists()), inside[0])


class _RefusedError(Exception):
    """The file may not be read."""


def _open(path: str, flags: int) -> int:
    # What a link leads to has been looked up, and must not be replaced by another link now; a pipe must not block.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
