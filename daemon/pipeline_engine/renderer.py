"""Renders templates for the event loop: small work on it, the rest in processes that can be killed."""

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

from pipeline_engine.errors import TemplateError
from pipeline_engine.jsontext import JsonTextError, dumps_compact, loads_strict
from pipeline_engine.templates import Templates

log = logging.getLogger(__name__)

PROCESSES = 2  # that render at the same time
#: A process also limits its own processor time and memory; this is for one that waits for neither.
MAX_SECONDS = 120
KILL_TIMEOUT = 5.0  # seconds that a killed process may take to be gone

_PROGRAM = "import sys; sys.path[:] = {path!r}; from pipeline_engine.render_process import main; main({fuel})"


class Renderer:
    """Renders as Templates does, without ever holding up the event loop for more than a few milliseconds.

    A rendering that takes longer, or whose values can snowball, runs in a process of its own: MiniJinja holds the
    interpreter while it works, and there are values that overrun its stack. See open_renderer.
    """

    def __init__(self, templates: Templates) -> None:
        self._templates = templates
        self._slots = trio.CapacityLimiter(PROCESSES)
        self._idle: deque[trio.Process] = deque()

    async def render(self, source: str, context: Mapping[str, object]) -> str:
        """The text that the template gives. Raises TemplateError."""
        return str(await self._run(source, context, is_expression=False))

    async def evaluate(self, source: str, context: Mapping[str, object]) -> Any:
        """The value of an expression without braces, as plain Python data. Raises TemplateError."""
        return await self._run(source, context, is_expression=True)

    async def _run(self, source: str, context: Mapping[str, object], *, is_expression: bool) -> Any:
        await trio.lowlevel.checkpoint()
        small, value = self._templates.run_small(source, context, is_expression=is_expression)
        if small:
            return value
        request = {
            "source": source,
            "is_expression": is_expression,
            "context": self._templates.context_read(source, context, is_expression=is_expression),
        }
        try:
            line = dumps_compact(request).encode("utf-8", "surrogatepass") + b"\n"
        except JsonTextError as exc:
            raise TemplateError(f"a value {exc}") from exc
        async with self._slots:
            answer = await self._ask(line)
        try:
            outcome = loads_strict(answer.decode("utf-8", "surrogatepass"))
        except JsonTextError as exc:
            raise TemplateError(f"the value {exc}") from exc
        if "error" in outcome:
            raise TemplateError(outcome["error"], details=outcome["details"])
        return outcome["value"]

    async def _ask(self, request: bytes) -> bytes:
        while self._idle:
            process = self._idle.pop()
            if answer := await self._exchange(process, request):
                return answer
            if process.returncode != 0:  # 0: it had idled long enough
                raise _died(process.returncode)
        process = await _start(self._templates.fuel)
        answer = await self._exchange(process, request)
        if not answer:
            raise _died(process.returncode)
        return answer

    async def _exchange(self, process: trio.Process, request: bytes) -> bytes:
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
        except trio.BrokenResourceError:
            answer.clear()
        except trio.TooSlowError as exc:
            raise TemplateError(f"the rendering takes longer than {MAX_SECONDS} s") from exc
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
async def open_renderer(templates: Templates) -> AsyncIterator[Renderer]:
    """A renderer whose processes end with this context."""
    renderer = Renderer(templates)
    try:
        yield renderer
    finally:
        await renderer.close()


async def _start(fuel: int) -> trio.Process:
    program = _PROGRAM.format(path=[folder for folder in sys.path if folder], fuel=fuel)
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
        raise TemplateError(f"cannot start a process for the rendering: {exc.strerror}") from exc


async def _end(process: trio.Process) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    with trio.move_on_after(KILL_TIMEOUT, shield=True) as scope:
        process.kill()
        await process.wait()
        await process.stdin.aclose()
        await process.stdout.aclose()
    if scope.cancelled_caught:
        log.warning("the rendering process %d is still there %g s after SIGKILL", process.pid, KILL_TIMEOUT)


def _died(code: int | None) -> TemplateError:
    if code == -signal.SIGXCPU:
        return TemplateError("the rendering takes more processor time than one may have")
    return TemplateError("the rendering needs more memory, or values nested deeper, than one may have")
