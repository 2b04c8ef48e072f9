"""Sends finished spans: a bounded queue, and one task that empties it without ever making anybody wait."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from opentelemetry.sdk.environment_variables import (
    OTEL_BSP_MAX_EXPORT_BATCH_SIZE,
    OTEL_BSP_MAX_QUEUE_SIZE,
    OTEL_BSP_SCHEDULE_DELAY,
)
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

_log = logging.getLogger(__name__)

LAST_SEND_TIMEOUT = 1.0  # seconds that the end of the daemon waits for a collector
COMPLAINT_INTERVAL = 300.0  # seconds between two log lines about spans that were lost
#: They write several lines, with tracebacks, about each batch that they cannot send.
_NOISY = "opentelemetry.exporter.otlp"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """As the variables OTEL_BSP_* have them: how many spans wait at most, go at once, and how long they wait."""

    size: int = 2048
    batch: int = 512
    delay_s: float = 5.0


def read_queue_settings(environ: Mapping[str, str]) -> QueueSettings:
    """The settings of the environment; what is no number above zero is passed over."""

    def number(name: str, default: int) -> int:
        text = environ.get(name, "").strip()
        if text and not (text.isascii() and text.isdigit() and int(text)):
            _log.warning("environment: %s is not a whole number above zero; %d is used", name, default)
            return default
        return int(text or default)

    size = number(OTEL_BSP_MAX_QUEUE_SIZE, 2048)
    batch = min(size, number(OTEL_BSP_MAX_EXPORT_BATCH_SIZE, 512))
    return QueueSettings(size=size, batch=batch, delay_s=number(OTEL_BSP_SCHEDULE_DELAY, 5000) / 1000)


class SpanQueue(SpanProcessor):
    """Takes spans from trio's thread and hands them to the exporter, in one worker thread, a batch at a time.

    The library's own BatchSpanProcessor wakes up every few seconds whether there is anything to send or not, holds
    up the end of the process for as much as 30 seconds, and fills the log when the collector is down. Here the oldest
    spans wait, the newest are dropped when there is no room, and a thread that is still sending at the end is left.
    """

    def __init__(self, exporter: SpanExporter, *, address: str, settings: QueueSettings) -> None:
        self._exporter = exporter
        self._address = address
        self._settings = settings
        self._spans: deque[ReadableSpan] = deque()
        self._some = trio.Event()
        self._enough = trio.Event()
        self._limiter = trio.CapacityLimiter(1)
        self._lost = 0
        self._failing = False
        self._complain_at = -math.inf

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if len(self._spans) >= self._settings.size:
            self._lost += 1
            return
        self._spans.append(span)
        self._some.set()
        if len(self._spans) >= self._settings.batch:
            self._enough.set()

    @asynccontextmanager
    async def exporting(self) -> AsyncIterator[None]:
        """While the block runs, spans are sent; at its end what is left is, as far as one second allows."""
        if not _log.isEnabledFor(logging.DEBUG):
            # For good: a thread that is left at the end has things to say too.
            logging.getLogger(_NOISY).setLevel(logging.CRITICAL + 1)
        try:
            async with trio.open_nursery() as sending:
                sending.start_soon(self._send_all)
                yield
                sending.cancel_scope.cancel()
        finally:
            with trio.move_on_after(LAST_SEND_TIMEOUT, shield=True) as scope:
                # A collector that did not take the last ones is not worth waiting for.
                while self._spans and not self._failing:
                    await self._send_batch()
            if scope.cancelled_caught:
                _log.warning("%s did not take the last spans within %g s", self._address, LAST_SEND_TIMEOUT)
            self._exporter.shutdown()

    async def _send_all(self) -> None:
        while True:
            await self._some.wait()
            with trio.move_on_after(self._settings.delay_s):
                await self._enough.wait()
            while len(self._spans) >= self._settings.batch:
                await self._send_batch()
            await self._send_batch()
            self._enough = trio.Event()
            if not self._spans:
                self._some = trio.Event()

    async def _send_batch(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()  # or the batch would be lost
        batch = [self._spans.popleft() for _ in range(min(len(self._spans), self._settings.batch))]
        # Abandoned at the end: the exporter may hang as long as its timeout, and its thread holds up nobody.
        result = await trio.to_thread.run_sync(self._export, batch, abandon_on_cancel=True, limiter=self._limiter)
        self._failing = result is not SpanExportResult.SUCCESS
        if self._failing:
            self._lost += len(batch)
        self._complain()

    def _export(self, batch: list[ReadableSpan]) -> SpanExportResult:
        try:
            return self._exporter.export(batch)
        except Exception as exc:  # noqa: BLE001 - spans are not worth more than the line that `_complain` writes
            _log.debug("spans cannot be sent", exc_info=exc)
            return SpanExportResult.FAILURE

    def _complain(self) -> None:
        now = trio.current_time()
        if not self._lost or now < self._complain_at:
            return
        self._complain_at = now + COMPLAINT_INTERVAL
        _log.warning(
            "%d spans were lost: %s does not take them, or not fast enough; log_level debug tells more",
            self._lost,
            self._address,
        )
        self._lost = 0
