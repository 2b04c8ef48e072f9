"""Renders templates for the event loop: small work on it, the rest in processes that can be killed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from pipeline_engine.errors import TemplateError
from pipeline_engine.templates import Templates
from pipeline_engine.worker_processes import WorkerError, WorkerProcesses


class Renderer:
    """Renders as Templates does, without ever holding up the event loop for more than a few milliseconds.

    A rendering that takes longer, or whose values can snowball, runs in a process of its own: MiniJinja holds the
    interpreter while it works, and there are values that overrun its stack.
    """

    def __init__(self, templates: Templates, *, processes: WorkerProcesses) -> None:
        self._templates = templates
        self._processes = processes

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
            "work": "evaluate" if is_expression else "render",
            "source": source,
            "context": self._templates.context_read(source, context, is_expression=is_expression),
            "fuel": self._templates.fuel,
        }
        try:
            outcome = await self._processes.ask(request, purpose="the rendering")
        except WorkerError as exc:
            raise TemplateError(exc.message) from exc
        if "error" in outcome:
            raise TemplateError(outcome["error"], details=outcome["details"])
        return outcome["value"]
