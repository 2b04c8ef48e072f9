"""Processes for work that may take for ever or need too much memory: they are bounded, and can be killed."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from pipeline_engine.errors import PipelineEngineError
from pipeline_engine.jsontext import JsonTextError, dumps_compact, loads_strict

log = logging.getLogger(__name__)

PROCESSES = 2  # that work at the same time
#: A process also limits its own processor time and memory; this is for one that waits for neither.
MAX_SECONDS = 120
MAX_ANSWER_BYTES = 64 * 1024 * 1024  # that are read back: the daemon's memory is not that of the process
KILL_TIMEOUT = 5.0  # seconds that a killed process may take to be gone

_PROGRAM = "import sys; sys.path[:] = {path!r}; from pipeline_engine.worker_process import main; main()"


class WorkerError(PipelineEngineError):
    """The work could not be done within its limits, or what it takes or gives cannot be sent."""


class WorkerStartError(WorkerError):
    """There is no process for the work, whatever it is."""

    code = "unavailable"


class WorkerProcesses:
    """Does work for the event loop in processes of its own. See open_worker_processes, and worker_process.py."""

    def __init__(self) -> None:
        self._slots = trio.CapacityLimiter(PROCESSES)
        self._idle: deque[trio.Process] = deque()

    async def ask(self, request: Mapping[str, object], *, purpose: str) -> dict[str, Any]:
        """The answer to a request: `value`, or `error` with `details`.

        `purpose` ("the rendering") is what messages call the work. Raises WorkerError.
        """
        try:
            line = dumps_compact(request).encode("utf-8", "surrogatepass") + b"\n"
        except JsonTextError as exc:
            raise WorkerError(f"a value {exc}") from exc
        async with self._slots:
            answer = await self._answer(line, purpose)
        try:
            outcome: dict[str, Any] = loads_strict(answer.decode("utf-8", "surrogatepass"))
        except JsonTextError as exc:
            raise WorkerError(f"the value {exc}") from exc
        return outcome

    async def _answer(self, request: bytes, purpose: str) -> bytes:
        while self._idle:
            process = self._idle.pop()
            if process.poll() is not None:  # it had idled long enough, or was killed for memory that others need
                await _end(process)
                continue
            if answer := await self._exchange(process, request, purpose):
                return answer
            if process.returncode != 0:  # 0: it had idled long enough
                raise _died(process.returncode, purpose)
        process = await _start(purpose)
        answer = await self._exchange(process, request, purpose)
        if not answer:
            raise _died(process.returncode, purpose)
        return answer

    async def _exchange(self, process: trio.Process, request: bytes, purpose: str) -> bytes:
        """The line that the process answers with; empty if it ended instead."""
        assert process.stdin is not None
        assert process.stdout is not None
        answer = bytearray()
        try:
            with trio.fail_after(MAX_SECONDS):
                await process.stdin.send_all(request)
                while not answer.endswith(b"\n"):
                    received = await process.stdout.receive_some()
                    if not received:
                        break
                    answer += received
                    if len(answer) > MAX_ANSWER_BYTES:
                        raise WorkerError(f"{purpose} gives more than {MAX_ANSWER_BYTES} bytes")
        except trio.BrokenResourceError:
            answer.clear()
        except trio.TooSlowError as exc:
            raise WorkerError(f"{purpose} takes longer than {MAX_SECONDS} s") from exc
        finally:
            if answer.endswith(b"\n"):
                self._idle.append(process)
            else:
                await _end(process)
        return bytes(answer) if answer.endswith(b"\n") else b""

    async def close(self) -> None:
        """End the processes that are idle."""
        while self._idle:
            await _end(self._idle.pop())


@asynccontextmanager
async def open_worker_processes() -> AsyncIterator[WorkerProcesses]:
    """Processes that end with this context; each is started when it is needed."""
    processes = WorkerProcesses()
    try:
        yield processes
    finally:
        await processes.close()


async def _start(purpose: str) -> trio.Process:
    program = _PROGRAM.format(path=[folder for folder in sys.path if folder])
    try:
        # No environment: there are keys in ours. A session of its own: a Ctrl-C in the terminal is not for it.
        return await trio.lowlevel.open_process(
            [sys.executable, "-I", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={},
        )
    except OSError as exc:
        raise WorkerStartError(f"cannot start a process for {purpose}: {exc.strerror}") from exc


async def _end(process: trio.Process) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    with trio.move_on_after(KILL_TIMEOUT, shield=True) as scope:
        process.kill()
        await process.wait()
        await process.stdin.aclose()
        await process.stdout.aclose()
    if scope.cancelled_caught:
        log.warning("the worker process %d is still there %g s after SIGKILL", process.pid, KILL_TIMEOUT)


def _died(code: int | None, purpose: str) -> WorkerError:
    if code == -signal.SIGXCPU:
        return WorkerError(f"{purpose} takes more processor time than one may have")
    return WorkerError(f"{purpose} needs more memory, or values nested deeper, than one may have")
