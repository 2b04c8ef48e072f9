"""Starts a tool confined: what it may do is decided here, and enforced by `tool_launcher.py` in its own process."""

from __future__ import annotations

import ctypes
import marshal
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

OPEN_FILES = 1024  # the soft limit of a tool; whatever it is for the daemon, few programs expect another

_LANDLOCK_CREATE_RULESET = 444
_VERSION = 1  # the flag that asks for the version of Landlock
_LAUNCHER = str(Path(__file__).with_name("tool_launcher.py"))
# -I and -S: nothing but the standard library, and nothing that the environment says. -X utf8: names are bytes in UTF-8.
_COMMAND = (sys.executable, "-I", "-S", "-X", "utf8", _LAUNCHER)


class ConfinementError(Exception):
    """The tool could not be confined; the message says why."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a tool may do with files: write the `writable` paths, and read all but the `hidden` ones.

    With `restrict_files` off, or on a kernel without Landlock, it may do what the daemon's user may. `max_memory_bytes`
    is what each of its processes may have of memory of its own; None is no limit.
    """

    writable: Sequence[str] = ()
    hidden: Sequence[str] = ()
    restrict_files: bool = True
    max_memory_bytes: int | None = None


def landlock_version() -> int:
    """What the kernel has of it; 0 is nothing."""
    return max(0, int(ctypes.CDLL(None).syscall(_LANDLOCK_CREATE_RULESET, None, 0, _VERSION)))


class ConfinedProcess:
    """A child of the calling thread. It has what trio.Process has, as far as it is needed here."""

    def __init__(self, popen: subprocess.Popen[bytes], status: int) -> None:
        self._popen = popen
        self._pidfd = os.pidfd_open(popen.pid)
        self._status = trio.lowlevel.FdStream(status)
        self.pid = popen.pid
        self.stdin = _stream(popen.stdin)
        self.stdout = _stream(popen.stdout)
        self.stderr = _stream(popen.stderr)

    @property
    def returncode(self) -> int | None:
        return self._popen.returncode

    def poll(self) -> int | None:
        code = self._popen.poll()
        if code is not None and self._pidfd >= 0:
            trio.lowlevel.notify_closing(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        return code

    async def wait(self) -> int:
        while (code := self.poll()) is None:
            with suppress(trio.ClosedResourceError):  # somebody else has seen its end
                await trio.lowlevel.wait_readable(self._pidfd)
        await trio.lowlevel.checkpoint()
        return code

    async def started(self) -> None:
        """Return when the tool itself runs. Raises OSError if its command cannot, and ConfinementError."""
        async with self._status:
            told = b"".join([bytes(part) async for part in self._status])
        if not told:
            return
        stage, number, name = marshal.loads(told)  # noqa: S302 - our own launcher wrote it
        if stage == "command":
            raise OSError(number, os.strerror(number)) if number else ValueError(name)
        if stage == "writable":
            raise ConfinementError(f"{name!r}, a path of `sandbox.writable`: {os.strerror(number)}")
        raise ConfinementError(f"{stage}: {os.strerror(number)}")


def start_confined(
    command: Sequence[str], confinement: Confinement, *, env: Mapping[str, str], cwd: str
) -> ConfinedProcess:
    """Start a command in a session of its own; the descriptors of the daemon are closed in it.

    Blocks until the launcher is there, about a millisecond. It must not be handed to a worker thread: the kernel kills
    the tool when the thread ends that started it, so that has to be one which lives as long as the daemon. Raises
    OSError if `cwd` cannot be entered.
    """
    status, status_end = os.pipe()
    order = os.memfd_create("order")
    try:
        text = marshal.dumps(
            {
                "command": [os.fsencode(part) for part in command],
                "environment": {os.fsencode(name): os.fsencode(value) for name, value in env.items()},
                "writable": [os.fsencode(path) for path in confinement.writable],
                "hidden": [os.fsencode(path) for path in confinement.hidden],
                "restrict_files": confinement.restrict_files,
                "open_files": OPEN_FILES,
                "memory": confinement.max_memory_bytes,
                "parent": os.getpid(),
                "status": status_end,
            }
        )
        # Not in the arguments: everybody can read those, and an environment may hold a key.
        with os.fdopen(os.dup(order), "wb") as file:
            file.write(text)
        os.lseek(order, 0, os.SEEK_SET)
        popen = subprocess.Popen(  # noqa: S603
            [*_COMMAND, str(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={},
            cwd=cwd,
            pass_fds=(order, status_end),
            start_new_session=True,
        )
    except BaseException:
        os.close(status)
        raise
    finally:
        os.close(order)
        os.close(status_end)
    return ConfinedProcess(popen, status)


def _stream(file: object) -> trio.lowlevel.FdStream:
    """The descriptor of a pipe as a stream of trio."""
    assert hasattr(file, "fileno")
    assert hasattr(file, "close")
    stream = trio.lowlevel.FdStream(os.dup(file.fileno()))
    file.close()
    return stream
