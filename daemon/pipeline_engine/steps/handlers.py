"""The functions that custom steps call: from entry points and from the configuration file."""

from __future__ import annotations

import importlib
import inspect
import logging
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import trio

from pipeline_engine.errors import ErrorCode, StepError
from pipeline_engine.steps.handler_threads import HandlerThreads

log = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "pipeline_engine.steps"
TOLD_JOBS = 256  # for so many jobs a handler remembers that its traceback is in the log


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerItem:
    """What a handler gets: the item it works on, and what the job was given. It may change `json`, `embedding` and `options`.

    `text` and `json` are the item's (in single mode the texts of all inputs, joined by newlines), and so is `embedding`,
    if it has one; `prompt` is the rendered user prompt; `sources` are
    `{kind, label, content, metadata}`, and what is changed in one is seen by the other items of the step alone.
    """

    job_id: str
    step_id: str
    shard_key: str | None
    index: int
    text: str
    json: Any
    embedding: list[float] | None
    prompt: str
    label: str
    sources: list[dict[str, Any]]
    options: dict[str, Any]


#: A handler returns a text, any JSON value, or None to leave the item out. It may be async.
HandlerFunction = Callable[[HandlerItem], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Handler:
    """A handler that is loaded, and the jobs whose log has a traceback of it: one of a thousand items is enough."""

    function: HandlerFunction
    module: str
    told_jobs: deque[str] = field(default_factory=lambda: deque(maxlen=TOLD_JOBS))


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

    def add(self, name: str, function: HandlerFunction) -> None:
        """Offer a function of the running program under a name."""
        self._configured[name] = f"{function.__module__}:{function.__qualname__}"
        self._loaded[name] = Handler(function, function.__module__)

    def _installed(self) -> dict[str, metadata.EntryPoint]:
        if self._entry_points is None:
            self._entry_points = {point.name: point for point in metadata.entry_points(group=ENTRY_POINT_GROUP)}
        return self._entry_points

    def _load(self, name: str) -> Handler:
        if not self.known(name):
            raise StepError(ErrorCode.MISSING_DEPENDENCY, f"there is no handler {name!r}")
        configured = self._configured.get(name)
        module = self._installed()[name].module if configured is None else configured.partition(":")[0]
        try:
            if configured is None:
                function = self._installed()[name].load()
            else:
                function = getattr(importlib.import_module(module), configured.partition(":")[2])
        except BaseException as exc:  # importing runs the module, which can do anything
            _let_cancellation_pass(exc)
            words = f"the handler {name!r} cannot be imported: {_described(exc, module)}"
            if isinstance(exc, ModuleNotFoundError):
                words += "; the daemon imports what is installed beside it, or lies in a folder of its PYTHONPATH"
            raise StepError(ErrorCode.MISSING_DEPENDENCY, words) from exc
        if not callable(function):
            raise StepError(ErrorCode.MISSING_DEPENDENCY, f"the handler {name!r} is not a function")
        return Handler(function, module)


def own_copy(value: Any) -> Any:
    """The JSON value with objects and lists of its own, for a handler that may change them."""
    if isinstance(value, dict):
        return {key: own_copy(part) for key, part in value.items()}
    if isinstance(value, list):
        return [own_copy(part) for part in value]
    return value


async def call_handler(
    handler: Handler, item: HandlerItem, *, threads: HandlerThreads, begin: Callable[[], Awaitable[None]]
) -> Any:
    """What the handler returns. A plain function runs in a worker thread, which a cancellation leaves to itself.

    `begin` is awaited directly before, when there is a thread. Raises StepError(tool_failed) with the exception's type,
    message and place when the handler raises.
    """
    if inspect.iscoroutinefunction(handler.function):
        await begin()
        return await _call(handler, item, handler.function)
    async with threads.place() as run:
        await begin()
        return await _call(handler, item, partial(run, handler.function))


async def _call(handler: Handler, item: HandlerItem, function: HandlerFunction) -> Any:
    try:
        return await function(item)
    except BaseException as exc:  # sys.exit(), or a panic of an extension module, must not end the daemon
        _let_cancellation_pass(exc)
        # What a handler raises when it is cancelled is no failure: why its scope was cancelled decides how the job ends.
        await trio.lowlevel.checkpoint_if_cancelled()
        if isinstance(exc, StepError):
            raise
        if item.job_id not in handler.told_jobs:
            handler.told_jobs.append(item.job_id)
            log.exception("a handler failed in job %s, step %s", item.job_id, item.step_id)
        words = f"the handler raised {_described(exc, handler.module)}"
        raise StepError(ErrorCode.TOOL_FAILED, words) from exc


def _let_cancellation_pass(exc: BaseException) -> None:
    """Raise what trio has to see of an exception: the cancellation of a scope outside of the handler.

    What came up beside it, as the handler was cancelled, is of no use to anybody any more; an exception that trio does
    not expect would end the daemon.
    """
    if isinstance(exc, trio.Cancelled):
        raise exc
    if isinstance(exc, BaseExceptionGroup) and (cancelled := exc.subgroup(trio.Cancelled)) is not None:
        raise cancelled from None


def _described(exc: BaseException, module: str) -> str:
    """The exception's type and message, and the last place (`my_steps.py:3`) in the package that the module is of."""
    package = module.partition(".")[0]
    places = [
        f" ({Path(frame.f_code.co_filename).name}:{line})"
        for frame, line in traceback.walk_tb(exc.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] == package
    ]
    return f"{type(exc).__name__}: {_text_of(exc)}{places[-1] if places else ''}"


def _text_of(exc: BaseException) -> str:
    try:
        return str(exc)
    except BaseException as fault:  # noqa: BLE001 - this runs the handler's own code once more
        return f"<its text cannot be had: {type(fault).__name__}>"
