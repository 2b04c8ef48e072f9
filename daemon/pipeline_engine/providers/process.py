"""A child process that leads a process group of its own: started, fed, read, and ended with its whole group."""

from __future__ import annotations

import errno
import logging
import math
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from pathlib import Path

import trio

from pipeline_engine.providers.confinement import ConfinedProcess, Confinement, ConfinementError, start_confined
from pipeline_engine.providers.leftovers import Leftovers

_log = logging.getLogger(__name__)

#: A child's own environment, where the daemon's does not say otherwise; nothing else of the daemon's is passed on.
DEFAULT_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/",
    "LANG": "C.UTF-8",
}

READ_BYTES = 64 * 1024  # what a pipe of Linux holds, so one read empties it

#: Once the child is gone, a pipe that another process still holds is read until it was silent for so long …
DRAIN_SILENCE = 0.1  # seconds
#: … and never longer than this.
DRAIN_LIMIT = 1.0  # seconds
#: What is left of the group after the child ended by itself gets no more than this between SIGTERM and SIGKILL.
LEFTOVER_GRACE = 1.0  # seconds
#: How long a group may take to vanish after SIGKILL: only a process stuck in the kernel needs any time at all.
KILL_TIMEOUT = 2.0  # seconds

_FIRST_PAUSE = 0.001  # seconds between two looks at a group that is ending; doubled each time up to _LAST_PAUSE
_LAST_PAUSE = 0.1
_LONG_PAUSE = 0.01  # from here on it is worth a look through /proc whether those who are left are dead already


class StartError(Exception):
    """The child could not be started; the message says why and, where known, what to do."""


class EndGrace:
    """Bounds the time that children have between SIGTERM and SIGKILL, for all of them at once."""

    def __init__(self) -> None:
        self._limit = math.inf
        self._scopes: set[trio.CancelScope] = set()

    def limit(self, seconds: float) -> None:
        """Children have no longer than this from now on, and those that are ending already no longer than this more."""
        self._limit = min(self._limit, seconds)
        for scope in self._scopes:
            scope.deadline = min(scope.deadline, trio.current_time() + seconds)

    @property
    def is_in_use(self) -> bool:
        """Whether a child is ending."""
        return bool(self._scopes)

    @contextmanager
    def scope(self, grace: float) -> Iterator[None]:
        """Leave the block after `grace` seconds, or before if that is more than the limit."""
        with trio.move_on_after(min(grace, self._limit)) as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)


class ChildProcess:
    """A running child; see open_child."""

    def __init__(
        self,
        process: trio.Process | ConfinedProcess,
        *,
        limiter: trio.CapacityLimiter | None = None,
        end_grace: EndGrace | None = None,
    ) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._stdin = process.stdin
        self._stdout = _OutputPipe(process.stdout)
        self._stderr = _OutputPipe(process.stderr)
        self._finished = trio.Event()
        self._limiter = limiter
        self._end_grace = end_grace or EndGrace()

    async def read(self) -> bytes:
        """The next bytes of the standard output; empty at its end, for which no other process than the child counts."""
        return await self._stdout.read()

    async def wait(self) -> int:
        """The exit code, negative for a signal, once the child is gone and its standard error has been read."""
        await self._finished.wait()
        code = self._process.returncode
        assert code is not None
        return code

    async def feed(self, data: bytes) -> None:
        async with self._stdin:
            # A child may close its standard input or end without reading it: that is its own affair.
            with suppress(trio.BrokenResourceError):
                await self._stdin.send_all(data)

    async def watch(self, on_stderr: Callable[[bytes], object]) -> None:
        async with trio.open_nursery() as stderr_nursery:
            stderr_nursery.start_soon(self._read_stderr, on_stderr)
            await self._process.wait()
            self._stdout.expect_end()
            self._stderr.expect_end()
        self._finished.set()

    async def _read_stderr(self, on_stderr: Callable[[bytes], object]) -> None:
        while data := await self._stderr.read():
            on_stderr(data)

    async def end(self, grace: float) -> None:
        """Close the pipes and leave nothing of the group behind: SIGTERM, `grace` seconds, SIGKILL."""
        if self._process.returncode is not None:
            grace = min(grace, LEFTOVER_GRACE)
        with trio.CancelScope(shield=True):
            if self._group_exists():
                await self._end_group(grace)
            for stream in (self._stdin, self._stdout.stream, self._stderr.stream):
                await trio.aclose_forcefully(stream)

    async def _end_group(self, grace: float) -> None:
        async with trio.open_nursery() as discard_nursery:
            # A process that is blocked writing to a full pipe could not act on the signal.
            discard_nursery.start_soon(_discard, self._stdout.stream)
            discard_nursery.start_soon(_discard, self._stderr.stream)
            self._signal_group(signal.SIGTERM)
            with self._end_grace.scope(grace):
                await self._wait_for_group()
            if self._group_exists():
                self._signal_group(signal.SIGKILL)
                with trio.move_on_after(KILL_TIMEOUT) as scope:
                    await self._wait_for_group()
                if scope.cancelled_caught:
                    _log.warning("process group %d is still there %g s after SIGKILL", self._process.pid, KILL_TIMEOUT)
            discard_nursery.cancel_scope.cancel()

    async def _wait_for_group(self) -> None:
        # The kernel tells nobody when a group becomes empty, so for this short time there is no way but to look.
        pause = _FIRST_PAUSE
        while self._group_exists():
            if pause > _LONG_PAUSE and await trio.to_thread.run_sync(
                only_zombies, self._process.pid, limiter=self._limiter
            ):
                return
            await trio.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE)

    def _group_exists(self) -> bool:
        # A zombie counts as a member, so the child is reaped first. From then on the number of the group may be given
        # to another one as soon as it is empty; this is asked at once and then every few milliseconds, and the numbers
        # do not come round in so short a time.
        if self._process.poll() is None:
            return True
        self._reap_orphans()
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # there is one, but it has changed its user
            return True
        return True

    def _reap_orphans(self) -> None:
        # In a container the daemon may be process 1: what the child leaves behind is then ours to wait for.
        with suppress(ChildProcessError):
            while os.waitpid(-self._process.pid, os.WNOHANG)[0]:
                pass

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


class _OutputPipe:
    """The reading end of a pipe, which ends with the child even when another process holds the pipe open."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self.stream = stream
        self._end_is_near = False
        self._until_exit = trio.CancelScope()
        self._drain_until: float | None = None

    def expect_end(self) -> None:
        """The child is gone: what it wrote is in the pipe already."""
        self._end_is_near = True
        self._until_exit.cancel()

    async def read(self) -> bytes:
        if not self._end_is_near:
            with trio.CancelScope() as self._until_exit:
                return bytes(await self.stream.receive_some(READ_BYTES))
        # The limit counts from the first read after the exit, not from the exit: a slow reader loses nothing, since
        # that read takes all that the child left in the pipe.
        now = trio.current_time()
        if self._drain_until is None:
            self._drain_until = now + DRAIN_LIMIT
        with trio.move_on_at(min(now + DRAIN_SILENCE, self._drain_until)):
            return bytes(await self.stream.receive_some(READ_BYTES))
        return b""


@asynccontextmanager
async def open_child(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str,
    stdin: bytes | None,
    on_stderr: Callable[[bytes], object],
    grace: float,
    end_grace: EndGrace | None = None,
    limiter: trio.CapacityLimiter | None = None,
    confinement: Confinement | None = None,
    leftovers: Leftovers | None = None,
) -> AsyncIterator[ChildProcess]:
    """Start `command` without a shell, with exactly the environment `env`, and pass `stdin` to it; with None its
    standard input stays open and silent for as long as this process lives.

    On leaving, its whole process group is ended (see ChildProcess.end; `grace` is in seconds, and bounded by `end_grace`),
    whatever the reason.
    `on_stderr` gets what it writes to its standard error. `limiter` bounds the threads that look through /proc.
    With a `confinement` it dies with this process, gains no privileges, and keeps to those files; with `leftovers`, so
    does all of its group. Raises StartError.
    """
    process: trio.Process | ConfinedProcess
    try:
        if confinement is not None:
            process = start_confined(command, confinement, env=env, cwd=cwd)
        else:
            process = await trio.lowlevel.open_process(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
    except (OSError, ValueError) as exc:
        raise StartError(_explain(command[0], cwd, exc)) from exc
    child = ChildProcess(process, limiter=limiter, end_grace=end_grace)
    failure: Exception | None = None
    with nullcontext() if leftovers is None else leftovers.group(process.pid):
        try:
            async with trio.open_nursery() as child_nursery:
                if stdin is not None:
                    child_nursery.start_soon(child.feed, stdin)
                child_nursery.start_soon(child.watch, on_stderr)
                try:
                    if isinstance(process, ConfinedProcess):
                        await _wait_until_started(process, command[0], cwd)
                    yield child
                except Exception as exc:  # noqa: BLE001 - carried round the nursery, which would wrap it in a group
                    failure = exc
                child_nursery.cancel_scope.cancel()
        finally:
            await child.end(grace)
    if failure is not None:
        raise failure


async def _wait_until_started(process: ConfinedProcess, command: str, cwd: str) -> None:
    try:
        await process.started()
    except ConfinementError as exc:
        raise StartError(f"it cannot be confined: {exc}") from exc
    except (OSError, ValueError) as exc:
        raise StartError(_explain(command, cwd, exc)) from exc


def base_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What every child gets of the daemon's environment."""
    return {name: environ.get(name) or value for name, value in DEFAULT_ENVIRONMENT.items()}


def describe_exit(exit_code: int) -> str:
    """How a child ended, in words that follow its name."""
    if exit_code > 0:
        return f"exited with code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:  # the real-time signals have no names
        name = f"signal {-exit_code}"
    return f"was killed by {name}"


def only_zombies(group: int) -> bool:
    """Whether all processes of the group are dead and only wait for their parents, or process 1, to take note.

    Only after SIGKILL is the answer final: before, a process may have been born behind the back of the search.
    """
    found = False
    with os.scandir("/proc") as entries:
        for entry in entries:
            if not entry.name.isdecimal():
                continue
            try:
                stat = Path(entry.path, "stat").read_bytes()
            except OSError:  # it is gone by now
                continue
            # proc_pid_stat(5): pid (name) state parent group …, where the name may hold anything.
            state, _, member_of = stat.rpartition(b")")[2].split(maxsplit=3)[:3]
            if int(member_of) == group:
                if state not in (b"Z", b"X"):
                    return False
                found = True
    return found


async def _discard(stream: trio.abc.ReceiveStream) -> None:
    while await stream.receive_some(READ_BYTES):
        pass


def _explain(command: str, cwd: str, exc: OSError | ValueError) -> str:
    if not isinstance(exc, OSError):
        return f"an argument or a variable of its environment cannot be passed on: {exc}"
    if exc.filename is not None and os.fsdecode(exc.filename) == cwd:
        return f"its directory {cwd!r} cannot be entered: {exc.strerror}"
    if exc.errno == errno.ENOENT:
        return (
            f"the command {command!r} was not found; install it, or give its full path in the profile's `command`"
            " (for a script, the interpreter in its first line must exist too)"
        )
    if exc.errno == errno.EACCES:
        return f"the command {command!r} is not executable; try `chmod +x`"
    if exc.errno == errno.ENOEXEC:
        return f"the command {command!r} is not a program; a script needs a first line such as `#!/bin/sh`"
    if exc.errno == errno.E2BIG:
        return f"the arguments of {command!r} are too long; pass large texts through the prompt, which goes to stdin"
    return f"the command {command!r}: {exc.strerror}"
