"""What parts of a job's work tell of themselves as spans: here nothing is done with it, in `otel.py` it is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeAlias

Attributes: TypeAlias = Mapping[str, str | int | float | bool | Sequence[str]]
TraceHeaders: TypeAlias = dict[str, str]  # `traceparent` and `tracestate` (W3C Trace Context), as far as they were sent

TRACE_HEADERS = ("traceparent", "tracestate")
MAX_TRACE_HEADER = 512  # characters: what the W3C asks of everybody to pass on


@dataclass(frozen=True, slots=True)
class Start:
    """What a span begins with; `is_client` says that it is a call of another process over the network."""

    name: str
    attributes: Attributes
    is_client: bool = False


class Span:
    """A part of a job's work, open while the block runs; spans that are opened in the block are its children.

    This one tells nobody, and costs next to nothing: what describes it is a function that is never called.
    """

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """An exception that leaves the block is what the span failed with."""

    def add(self, describe: Callable[[], Attributes]) -> None:
        """Tell more about it."""

    def fail(self, error_type: str, message: str) -> None:
        """It did not succeed."""


class Tracer:
    """Opens spans. This one is for when tracing is off.

    `wants_content` is whether prompts and answers belong into spans.
    """

    wants_content = False

    def span(self, describe: Callable[[], Start], *, parent: TraceHeaders | None = None) -> Span:
        """A span as `describe` begins it: a child of the one that is open, or, where it is given, of `parent`."""
        return _NO_SPAN


_NO_SPAN = Span()
NO_TRACER = Tracer()


def read_trace_headers(headers: Mapping[str, str]) -> TraceHeaders | None:
    """The trace context that a request came with, for the job that it starts; None if there is none."""
    found = {name: headers[name] for name in TRACE_HEADERS if 0 < len(headers.get(name, "")) <= MAX_TRACE_HEADER}
    return found if "traceparent" in found else None
