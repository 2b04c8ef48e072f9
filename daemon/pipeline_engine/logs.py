"""Sets up the log: for people, as JSON, or for the journal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TextIO

from pipeline_engine.config import LogFormat, LogLevel
from pipeline_engine.journal import JournalHandler, is_journal, priority

if TYPE_CHECKING:
    from structlog.typing import Processor

#: They write headers and addresses of requests when they are let; what matters of that our own modules say.
_QUIET = ("h11", "httpcore", "httpx", "hypercorn", "quart", "quart.app", "asyncio", "urllib3")


class RedactingFormatter(logging.Formatter):
    """What another formatter makes of a record, tracebacks included, without secrets."""

    def __init__(self, inner: logging.Formatter, redact: Callable[[str], str]) -> None:
        super().__init__()
        self._inner = inner
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        return self._redact(self._inner.format(record))


class JournalFormatter(logging.Formatter):
    """`<N>` with the priority before each line, as sd-daemon(3) has it; the journal knows the time by itself."""

    def format(self, record: logging.LogRecord) -> str:
        text = f"{record.name}: {super().format(record)}"
        return "\n".join(f"<{priority(record.levelno)}>{line}" for line in text.split("\n"))


def _as_it_is(text: str) -> str:
    return text


def set_up_logging(
    level: LogLevel,
    log_format: LogFormat,
    *,
    stream: TextIO | None = None,
    redact: Callable[[str], str] = _as_it_is,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Send all records of that level and above to the stream, standard error if none is given.

    In the journal's format, and if the stream goes to the journal, they are sent to that itself. `redact` takes the
    secrets out of what is written.
    """
    stream = stream or sys.stderr
    handler: logging.Handler = logging.StreamHandler(stream)
    handler.setFormatter(RedactingFormatter(_formatter(log_format, colors=stream.isatty()), redact))
    if log_format is LogFormat.JOURNAL and environ is not None and is_journal(stream, environ):
        handler = JournalHandler(fallback=handler)
        handler.setFormatter(RedactingFormatter(logging.Formatter("%(message)s"), redact))
    _use(handler)
    logging.captureWarnings(capture=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    set_log_level(level)


def log_to_terminal(stream: TextIO, *, redact: Callable[[str], str] = _as_it_is) -> None:
    """Send warnings and worse to the stream, as a command says them that runs an engine of its own."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(RedactingFormatter(logging.Formatter("pipeline-engine: %(message)s"), redact))
    _use(handler)
    set_log_level(LogLevel.WARNING)


def _use(handler: logging.Handler) -> None:
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)


def set_log_level(level: LogLevel) -> None:
    logging.getLogger().setLevel(level.upper())


def _formatter(log_format: LogFormat, *, colors: bool) -> logging.Formatter:
    if log_format is LogFormat.JOURNAL:
        return JournalFormatter()
    import structlog  # noqa: PLC0415 - slow to import, and `run` does without

    shared: list[Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format is LogFormat.JSON:
        last: list[Processor] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain, pad_event_to=0)]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
