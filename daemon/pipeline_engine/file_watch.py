"""Tells when files in some directories change, by inotify: without polling and without a thread."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import trio

QUIET_S = 0.1  # a change counts when nothing more has changed for so long: writers write in several steps
MAX_DELAY_S = 2.0  # but for no longer than this: something may change all the time

_READ_SIZE = 64 * 1024  # bytes
_EVENT = struct.Struct("iIII")  # inotify(7): wd, mask, cookie, length of the name that follows

_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _OVERFLOW = 0x400, 0x800, 0x4000
_MASK = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
_WHOLE_DIRECTORY = _DELETE_SELF | _MOVE_SELF | _OVERFLOW

Interest = Callable[[str], bool]


class FileWatch:
    """Use `open_file_watch`."""

    def __init__(self, descriptor: int, libc: ctypes.CDLL) -> None:
        self._descriptor = descriptor
        self._libc = libc
        self._interests: dict[int, list[Interest]] = {}

    def watch(self, wanted: Mapping[Path, Interest]) -> list[Path]:
        """Watch these directories, for names that the interest of each accepts; those that cannot be are returned.

        Two paths may lead to one directory.
        """
        kept: dict[int, list[Interest]] = {}
        failed = []
        for directory, interest in wanted.items():
            number = self._libc.inotify_add_watch(self._descriptor, os.fsencode(directory), _MASK)
            if number < 0:
                failed.append(directory)
            else:
                kept.setdefault(number, []).append(interest)
        for number in self._interests.keys() - kept.keys():
            self._libc.inotify_rm_watch(self._descriptor, number)  # fails for a directory that is gone, as it should
        self._interests = kept
        return failed

    async def changed(self) -> None:
        """Return when something of interest has changed and has been left alone for QUIET_S."""
        while True:
            await trio.lowlevel.wait_readable(self._descriptor)
            if self._read():
                break
        with trio.move_on_after(MAX_DELAY_S):
            more = True
            while more:
                with trio.move_on_after(QUIET_S) as quiet:
                    await trio.lowlevel.wait_readable(self._descriptor)
                    self._read()
                more = not quiet.cancelled_caught

    def _read(self) -> bool:
        """Take all events that wait; whether one of them is of interest."""
        try:
            data = os.read(self._descriptor, _READ_SIZE)
        except BlockingIOError:
            return False
        found = False
        offset = 0
        while offset < len(data):
            number, mask, _cookie, length = _EVENT.unpack_from(data, offset)
            start = offset + _EVENT.size
            name = os.fsdecode(data[start : start + length].rstrip(b"\0"))
            interests = self._interests.get(number, ())
            found = found or bool(mask & _WHOLE_DIRECTORY) or any(interest(name) for interest in interests)
            offset = start + length
        return found


@contextmanager
def open_file_watch() -> Iterator[FileWatch]:
    """A watch for files. Raises OSError where there is none: not Linux, or too many in use."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "inotify_init1"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    try:
        yield FileWatch(descriptor, libc)
    finally:
        os.close(descriptor)
