"""Disks for the store that lose what was not synced, or that fail on demand: layers over SQLite's own."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest

_NAMES = (f"test-disk-{number}" for number in itertools.count())


class PowerLossDisk:
    """Remembers, for each file, what was synced and what was written since.

    `lose_power` leaves the files as a machine that lost power might: all that was synced is there, and of the later
    writes any, in any combination, since a disk does not keep their order; the last one may be torn.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._synced: dict[str, bytearray] = {}
        self._written: dict[str, list[tuple[int, bytes | None]]] = {}  # offset and bytes, or a length to cut to
        self.writes = 0

    def opened(self, path: str) -> None:
        if path not in self._synced:
            self._synced[path] = bytearray(Path(path).read_bytes() if Path(path).exists() else b"")
            self._written[path] = []

    def before(self, operation: str, path: str, offset: int = 0, data: bytes | None = None) -> None:
        if operation == "sync":
            for change in self._written[path]:
                _apply(self._synced[path], *change)
            self._written[path].clear()
        elif operation in ("write", "truncate"):
            self.writes += 1
            self._written[path].append((offset, data))
        elif operation == "delete":
            self._synced.pop(path, None)
            self._written.pop(path, None)

    def lose_power(self, directory: Path) -> None:
        """Write what remains of the files to another directory."""
        directory.mkdir()
        for path, synced in self._synced.items():
            content = bytearray(synced)
            kept = [change for change in self._written[path] if self._random.random() < 0.5]
            if kept and kept[-1][1] is not None and self._random.random() < 0.5:
                offset, data = kept[-1]
                assert data is not None
                kept[-1] = (offset, data[: self._random.randrange(len(data))])
            for change in kept:
                _apply(content, *change)
            (directory / Path(path).name).write_bytes(content)


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        return
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


class FailingDisk:
    """Fails one kind of operation on one kind of file while `error` is set."""

    def __init__(self, operation: str, suffix: str) -> None:
        self._operation = operation
        self._suffix = suffix
        self.error: type[apsw.Error] | None = None
        self.failures = 0

    def opened(self, path: str) -> None:
        pass

    def before(self, operation: str, path: str, offset: int = 0, data: bytes | None = None) -> None:
        if self.error is not None and operation == self._operation and path.endswith(self._suffix):
            self.failures += 1
            raise self.error(f"{operation} of {Path(path).name} fails")


Disk = PowerLossDisk | FailingDisk


class _File(apsw.VFSFile):
    def __init__(self, name: Any, flags: list[int], disk: Disk) -> None:
        super().__init__("", name, flags)
        self._path = name if isinstance(name, str) else name.filename()
        self._disk = disk
        disk.opened(self._path)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - SQLite's name
        self._disk.before("write", self._path, offset, bytes(data))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 - SQLite's name
        self._disk.before("truncate", self._path, newsize)
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        self._disk.before("sync", self._path)
        super().xSync(flags)


class _Vfs(apsw.VFS):
    def __init__(self, name: str, disk: Disk) -> None:
        super().__init__(name, "", maxpathname=1024)
        self.name = name
        self._disk = disk

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - SQLite's name
        return _File(name, flags, self._disk)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802 - SQLite's name
        self._disk.before("delete", filename)
        super().xDelete(filename, syncdir)


@contextmanager
def use_disk(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The store's connections that are opened in the block are on this disk."""
    vfs = _Vfs(next(_NAMES), disk)
    connect: Callable[..., apsw.Connection] = apsw.Connection
    with monkeypatch.context() as patch:
        patch.setattr(apsw, "Connection", lambda path, **more: connect(path, vfs=vfs.name, **more))
        yield
    vfs.unregister()
