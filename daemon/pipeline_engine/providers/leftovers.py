"""What tools would leave behind if the daemon were killed: their process groups, and their scratch directories."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT = 2.0  # seconds for the process to end by itself

_PROGRAM = str(Path(__file__).with_name("leftovers_process.py"))
# -I and -S: it needs nothing but the standard library, and is up three times as fast.
_COMMAND = (sys.executable, "-I", "-S", _PROGRAM)


class Leftovers:
    """Tells a process of ours what must not outlive the daemon; it cleans up when the daemon is gone.

    A parent-death signal reaches the tool alone, and none of the processes that the tool has started. There is one such
    process for all tools, from the first one on.
    """

    def __init__(self) -> None:
        self._process: trio.Process | None = None
        self._pipe = -1
        self._starting = trio.Lock()
        self._noted: set[tuple[str, int | str]] = set()

    async def open(self) -> None:
        """Start the process, unless it runs. Where it cannot be started, nothing cleans up."""
        async with self._starting:
            if self._process is not None:
                if self._pipe >= 0 and self._process.poll() is None:
                    return
                self._give_up(self._process)
                await self._process.wait()
            try:
                self._process, self._pipe = await _start()
            except OSError as exc:
                _log.warning("if the daemon is killed, tools may outlive it: %s", exc.strerror)
                return
        for kind, name in self._noted:
            self._tell("+", kind, name)

    @contextmanager
    def group(self, number: int) -> Iterator[None]:
        """In the block, the process group dies with the daemon."""
        with self._kept("group", number):
            yield

    @contextmanager
    def directory(self, path: str) -> Iterator[None]:
        """In the block, the directory goes with the daemon, after the groups."""
        with self._kept("directory", path):
            yield

    async def aclose(self) -> None:
        """End the process; nothing is left for it to do."""
        self._hang_up()
        if self._process is None:
            return
        with trio.move_on_after(CLOSE_TIMEOUT, shield=True) as scope:
            await self._process.wait()
        if scope.cancelled_caught:
            _log.warning("the process that cleans up behind a killed daemon did not end within %g s", CLOSE_TIMEOUT)
            self._process.kill()

    @contextmanager
    def _kept(self, kind: str, name: int | str) -> Iterator[None]:
        self._noted.add((kind, name))
        self._tell("+", kind, name)
        try:
            yield
        finally:
            self._noted.discard((kind, name))
            self._tell("-", kind, name)

    def _tell(self, sign: str, kind: str, name: int | str) -> None:
        if self._pipe < 0 or self._process is None:
            return
        try:
            # The process reads all the time, and the pipe has room for a thousand of these lines.
            os.write(self._pipe, json.dumps([sign, kind, name]).encode() + b"\n")
        except OSError as exc:
            # It is gone, or stopped; the next tool starts another one, which is told all that is noted.
            _log.warning("the process that cleans up behind a killed daemon does not listen: %s", exc.strerror)
            self._give_up(self._process)

    def _give_up(self, process: trio.Process) -> None:
        # Killed first: at the end of its input it would take the daemon for dead, and kill tools that run.
        process.kill()
        self._hang_up()

    def _hang_up(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
        self._pipe = -1


async def _start() -> tuple[trio.Process, int]:
    """The process, and our end of its pipe."""
    theirs, ours = os.pipe()
    try:
        process = await trio.lowlevel.open_process(
            _COMMAND,
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,  # what is sent to the daemon's group is not for it
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    os.set_blocking(ours, False)
    return process, ours
