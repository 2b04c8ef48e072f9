"""The functions that custom steps call: from entry points and from the configuration file."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import trio

from pipeline_engine.errors import ErrorCode, StepError

ENTRY_POINT_GROUP = "pipeline_engine.steps"


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerItem:
    """What a handler gets: the item it works on, and what the job was given.

    `text` and `json` are the item's (in single mode the texts of all inputs, joined by newlines); `prompt` is the
    rendered user prompt; `sources` are `{kind, label, content, metadata}`.
    """

    job_id: str
    step_id: str
    shard_key: str | None
    index: int
    text: str
    json: Any
    prompt: str
    label: str
    sources: list[dict[str, Any]]
    options: dict[str, Any]


#: A handler returns a text, any JSON value, or None to leave the item out. It may be async.
Handler = Callable[[HandlerItem], Any]


class Handlers:
    """Handlers by name; each is imported when it is first called."""

    def __init__(self, configured: Mapping[str, str] | None = None) -> None:
        self._configured = dict(configured or {})
        self._loaded: dict[str, Handler] = {}
        self._entry_points: dict[str, metadata.EntryPoint] | None = None

    def known(self, name: str) -> bool:
        return name in self._configured or name in self._installed()

    def get(self, name: str) -> Handler:
        """The handler of that name. Raises StepError when it cannot be imported."""
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def add(self, name: str, handler: Handler) -> None:
        """Offer a function of the running program under a name."""
        self._configured[name] = f"{handler.__module__}:{handler.__qualname__}"
        self._loaded[name] = handler

    def _installed(self) -> dict[str, metadata.EntryPoint]:
        if self._entry_points is None:
            self._entry_points = {point.name: point for point in metadata.entry_points(group=ENTRY_POINT_GROUP)}
        return self._entry_points

    def _load(self, name: str) -> Handler:
        if not self.known(name):
            raise StepError(ErrorCode.MISSING_DEPENDENCY, f"there is no handler {name!r}")
        try:
            if name in self._configured:
                module, _, attribute = self._configured[name].partition(":")
                handler = getattr(importlib.import_module(module), attribute)
            else:
                handler = self._installed()[name].load()
        except (Exception, SystemExit) as exc:  # importing runs the module, which can do anything
            words = f"the handler {name!r} cannot be imported: {type(exc).__name__}: {exc}"
            raise StepError(ErrorCode.MISSING_DEPENDENCY, words) from exc
        if not callable(handler):
            raise StepError(ErrorCode.MISSING_DEPENDENCY, f"the handler {name!r} is not a function")
        return handler  # type: ignore[no-any-return]  # whatever is callable; what it returns is checked at the call


async def call_handler(handler: Handler, item: HandlerItem, *, threads: trio.CapacityLimiter) -> Any:
    """What the handler returns. A plain function runs in a worker thread, which a cancellation leaves to itself.

    Raises StepError(tool_failed) with the exception's type and message when the handler raises.
    """
    try:
        if inspect.iscoroutinefunction(handler):
            return await handler(item)
        return await trio.to_thread.run_sync(handler, item, abandon_on_cancel=True, limiter=threads)
    except StepError:
        raise
    except (Exception, SystemExit) as exc:  # sys.exit() in a plug-in must not end the daemon
        words = f"the handler raised {type(exc).__name__}: {exc}"
        raise StepError(ErrorCode.TOOL_FAILED, words) from exc
