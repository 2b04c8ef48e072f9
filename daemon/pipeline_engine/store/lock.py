"""The lock by which one process holds a data directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline_engine.errors import DataDirectoryInUseError, StoreError


@contextmanager
def hold_directory(directory: Path) -> Iterator[None]:
    """Hold `directory` (made if needed, for its owner alone) against other processes.

    Raises DataDirectoryInUseError when another process holds it. The kernel drops the lock with the process, so a
    crash leaves nothing to clean up.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise StoreError(f"cannot use the data directory {directory}: {exc.strerror}") from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            by = f" by process {holder}" if holder else ""
            words = f"the data directory {directory} is in use{by}; stop it, or choose another with --data-dir"
            raise DataDirectoryInUseError(words) from exc
        with suppress(OSError):  # on a full disk; it is only for the message above
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
