"""Runs a local command as a provider: the prompt on its standard input, its standard output as the answer."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import trio

from pipeline_engine.errors import ErrorCode, StepError
from pipeline_engine.models import Sandbox
from pipeline_engine.providers.base import Chunk, Completion, ProviderCall, Target
from pipeline_engine.providers.confinement import Confinement, landlock_version
from pipeline_engine.providers.leftovers import Leftovers
from pipeline_engine.providers.process import (
    ChildProcess,
    EndGrace,
    StartError,
    base_environment,
    describe_exit,
    open_child,
)
from pipeline_engine.providers.tool_output import BinaryOutput, Tail, ToolOutput

_log = logging.getLogger(__name__)

PIECE_TIME = 0.05  # seconds that output waits for more, so that a chatty tool does not make an event of each line
STDERR_BYTES = 4 * 1024
#: What programs of many languages say when they get no more memory; the kernel itself tells nobody.
_OUT_OF_MEMORY = re.compile(
    r"(?i)out ?of ?memory|memory ?error|cannot allocate|failed to allocate|unable to allocate|bad_alloc"
    r"|memory exhausted|memory allocation of|not enough memory|ENOMEM"
)
REMOVE_TIMEOUT = 10.0  # seconds for a scratch directory; a tool may have left a large tree in it


class LocalToolProvider:
    """Starts the command of a call (Operation.TOOL) in a process group of its own, without a shell.

    The tool works in the profile's `cwd`; without one, in a scratch directory of its own that is removed afterwards.
    `environment` is the daemon's; `scratch_root` is where the scratch directories are made (None: the system's
    directory for temporary files); `limiter` bounds the threads for slow work with files. With `leftovers`, nothing of a
    tool outlives the daemon.
    """

    def __init__(
        self,
        *,
        environment: Mapping[str, str],
        scratch_root: str | None = None,
        limiter: trio.CapacityLimiter | None = None,
        leftovers: Leftovers | None = None,
    ) -> None:
        self._environment = base_environment(environment)
        self._scratch_root = scratch_root
        self._hidden: list[str] = []
        self._told = False
        self._limiter = limiter
        self._leftovers = leftovers
        #: Of all tools that it has started and will start.
        self.end_grace = EndGrace()

    def hide(self, paths: Iterable[Path]) -> None:
        """No tool that is started from now on may read these, nor those that were hidden before."""
        # Absolute: what is relative would be read in the directory of the tool.
        self._hidden = list(dict.fromkeys([*self._hidden, *(str(path.absolute()) for path in paths)]))

    @asynccontextmanager
    async def stream(self, call: ProviderCall) -> AsyncIterator[AsyncIterator[list[Chunk | Completion]]]:
        target = call.target
        if not call.command:
            raise StepError(ErrorCode.TOOL_FAILED, f"tool {target.profile_id} has no command; set it in the profile")
        deadline = math.inf if target.timeout_s is None else trio.current_time() + target.timeout_s
        command, env = child_arguments(call, self._environment)
        stdin = call.stdin.encode("utf-8", "replace")
        stderr = Tail(STDERR_BYTES)
        if self._leftovers is not None:
            await self._leftovers.open()
        try:
            async with (
                self._open_directory(target) as cwd,
                open_child(
                    command,
                    env=env,
                    cwd=cwd,
                    stdin=stdin,
                    on_stderr=stderr.append,
                    grace=target.grace_s,
                    end_grace=self.end_grace,
                    limiter=self._limiter,
                    confinement=self._confinement(target, cwd),
                    leftovers=self._leftovers,
                ) as child,
                aclosing(_answer(child, call, stderr, deadline)) as answer,
            ):
                yield answer
        except StartError as exc:
            message = f"tool {target.profile_id} could not be started: {exc}"
            raise StepError(ErrorCode.TOOL_FAILED, message) from exc

    def _confinement(self, target: Target, cwd: str) -> Confinement:
        restrict_files = target.sandbox is not False
        if restrict_files and not self._told and landlock_version() == 0:
            self._told = True
            _log.warning("this kernel has no Landlock: tools can read and write whatever the daemon's user can")
        writable = [] if target.cwd is not None else [cwd]  # a scratch directory is the tool's own
        if isinstance(target.sandbox, Sandbox):
            writable += target.sandbox.writable
        return Confinement(
            writable=writable,
            hidden=self._hidden,
            restrict_files=restrict_files,
            max_memory_bytes=memory_limit(target),
        )

    @asynccontextmanager
    async def _open_directory(self, target: Target) -> AsyncIterator[str]:
        if target.cwd is not None:
            yield target.cwd
            return
        # Making and removing an empty directory takes microseconds, less than the way to a thread and back.
        try:
            directory = Path(tempfile.mkdtemp(prefix="pipeline-engine-tool-", dir=self._scratch_root))
        except OSError as exc:
            raise StartError(f"no scratch directory could be made for it: {exc}") from exc
        with nullcontext() if self._leftovers is None else self._leftovers.directory(str(directory)):
            try:
                yield str(directory)
            finally:
                await self._remove(directory)

    async def _remove(self, directory: Path) -> None:
        if _remove_empty(directory):
            return
        with trio.move_on_after(REMOVE_TIMEOUT, shield=True) as scope:
            try:
                await trio.to_thread.run_sync(shutil.rmtree, directory, abandon_on_cancel=True, limiter=self._limiter)
            except OSError as exc:
                _log.warning("scratch directory %s could not be removed: %s", directory, exc)
        if scope.cancelled_caught:
            _log.warning("scratch directory %s is not removed yet after %g s", directory, REMOVE_TIMEOUT)


def memory_limit(target: Target) -> int | None:
    """How many bytes each process of the tool may have; without a setting half of the machine's memory."""
    if target.max_memory_bytes is None:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return target.max_memory_bytes or None


def child_arguments(call: ProviderCall, environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The argv and the whole environment of the child; all text is UTF-8, whatever the daemon's locale is."""
    env = {**environment, **call.env}
    return [_as_utf8(part) for part in call.command], {_as_utf8(name): _as_utf8(value) for name, value in env.items()}


def _remove_empty(directory: Path) -> bool:
    with suppress(OSError):  # it is not empty
        directory.rmdir()
        return True
    return False


async def read_pieces(
    read: Callable[[], Awaitable[bytes]], output: ToolOutput, deadline: float
) -> AsyncGenerator[list[str], None]:
    """Move what `read` gives into `output` until its end or the deadline; the pieces, as they become due.

    A piece is due when it is 64 KiB large or when its first byte has waited for 50 ms.
    """
    flush_at = math.inf
    while trio.current_time() < deadline:
        data: bytes | None = None
        with trio.move_on_at(min(flush_at, deadline)):
            data = await read()
        if data == b"":
            return
        if data is None:
            pieces = output.flush()
            flush_at = math.inf
        else:
            output.append(data)
            pieces = output.full_pieces()
        if not output.has_unsent:
            flush_at = math.inf
        elif flush_at == math.inf:
            flush_at = trio.current_time() + PIECE_TIME
        if pieces:
            yield pieces


async def _answer(
    child: ChildProcess, call: ProviderCall, stderr: Tail, deadline: float
) -> AsyncGenerator[list[Chunk | Completion], None]:
    target = call.target
    output = (BinaryOutput if call.binary else ToolOutput)(target.max_output_bytes)
    async with aclosing(read_pieces(child.read, output, deadline)) as due:
        async for pieces in due:
            yield [Chunk(piece) for piece in pieces]
    exit_code: int | None = None
    with trio.move_on_at(deadline):
        exit_code = await child.wait()
    last: list[Chunk | Completion] = [Chunk(piece) for piece in output.finish()]
    warnings = [*output.warnings(), *_stderr_warnings(stderr)]
    if exit_code == 0:
        content = output.content if isinstance(output, BinaryOutput) else b""
        yield [*last, Completion(finish_reason="stop", warnings=warnings, output=content)]
        return
    if last:
        yield last
    details: dict[str, Any] = {"stderr": stderr.text}
    if warnings:
        details["warnings"] = warnings
    if exit_code is None:
        message = f"tool {target.profile_id} did not end within its timeout_s, {target.timeout_s:g} s"
        raise StepError(ErrorCode.TIMEOUT, message, details=details)
    message = f"tool {target.profile_id} {describe_exit(exit_code)}"
    limit = memory_limit(target)
    if limit is not None and _OUT_OF_MEMORY.search(stderr.text):
        message += f": it ran out of memory, of which it may have {limit} bytes (extra.max_memory_bytes)"
    elif target.sandbox is not False and "permission denied" in stderr.text.lower():
        message += "; a tool may write to its scratch directory and to what sandbox.writable names, and not read the daemon's files"
    raise StepError(ErrorCode.TOOL_FAILED, message, details={"exit_code": exit_code, **details})


def _stderr_warnings(stderr: Tail) -> list[dict[str, Any]]:
    if not stderr.is_cut:
        return []
    message = f"the tool wrote {stderr.total} bytes to its standard error; only the last {stderr.limit} are kept"
    return [
        {"code": "stderr_truncated", "message": message, "total_bytes": stderr.total, "kept_bytes": stderr.limit},
    ]


def _as_utf8(text: str) -> str:
    """The text that Python passes to the child as the UTF-8 bytes of `text`."""
    # Half of a surrogate pair, which JSON can carry, has no bytes in UTF-8.
    return os.fsdecode(text.encode("utf-8", "replace"))
