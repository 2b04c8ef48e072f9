"""Following a job as a state machine: it reads what the stream brings, and decides what to do when that ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec

from . import _calls
from ._calls import Call, read_error
from ._errors import ApiError, ConnectionFailed, DeadlineExceeded, PipelineEngineError, ProtocolError, class_for
from ._lines import LineSplitter
from ._models import Event, EventPage, Job
from ._retries import RETRIED_STATUSES, Patience, connection_failed, parse_retry_after
from ._settings import Target

# What another connection cannot mend.
_FINAL_CODES = frozenset({"not_found", "gone", "unauthorized", "forbidden", "invalid_request", "unknown_pipeline"})

LONGEST_PAGE_WAIT = 20.0  # seconds that the daemon may hold back a page of events
BETWEEN_PAGES = 0.2  # seconds; a job that streams tokens must not be asked for each of them


class _Line(msgspec.Struct):
    """A line of a stream: heartbeats and errors of the stream itself have no seq."""

    event: str
    seq: int | None = None
    job_id: str = ""
    ts: str = ""
    data: dict[str, Any] = {}


_LINES = msgspec.json.Decoder(_Line)


class Following:
    """The events of one job over as many connections as it takes.

    The caller makes `next_call`, tells `opened`, feeds what comes, and tells how it ended; each of those returns the
    seconds to wait before the next call, or raises what ends it all. `finished` is true after stream_finished, or
    when the job is over and has no more events.
    """

    def __init__(
        self,
        *,
        target: Target,
        patience: Patience,
        submit: Call[None] | None = None,
        job_id: str | None = None,
        after_seq: int = 0,
    ) -> None:
        self._target = target
        self._patience = patience
        self._submit = submit
        self._lines = LineSplitter()
        self._was_told_error = False
        self._is_new_connection = False
        self.job_id = job_id
        self.seq = after_seq
        self.finished = False

    def next_call(self) -> Call[None]:
        """What opens the next connection: the submission, until the job is known; it has the same key each time."""
        self._lines = LineSplitter()
        if self.job_id is None:
            assert self._submit is not None
            return self._submit
        return _calls.follow_job(self.job_id, after_seq=self.seq)

    def opened(self) -> None:
        """The daemon has answered and the events come."""
        self._patience.heard()
        self._is_new_connection = True

    def refused(self, call: Call[None], status: int, headers: Mapping[str, str], content: bytes) -> float:
        """The daemon has answered otherwise."""
        retry_after = parse_retry_after(headers, now=datetime.now(UTC))
        error = read_error(call, status, content, retry_after=retry_after)
        if status not in RETRIED_STATUSES:
            raise error
        return self._pause(error, retry_after)

    def broke(self, error: httpx.HTTPError) -> float:
        """There is no connection (any more)."""
        failed = connection_failed(self._target, error, job_id=self.job_id)
        if isinstance(error, httpx.UnsupportedProtocol):
            raise failed from error
        return self._pause(failed)

    def feed(self, data: bytes) -> list[Event]:
        """The events that this piece of the stream completes, each once. Raises the error that the stream tells."""
        events = []
        for raw in self._lines.feed(data):
            line = self._read(raw)
            if line.seq is None:
                self._take_unnumbered(line)
            elif not self.finished and line.seq > self.seq:
                events.append(self._take(line, line.seq))
        return events

    def asks_for_job(self) -> bool:
        """Whether, now that the stream has ended, only the job itself can tell if more is to come.

        A stream that begins at the end of a finished job is empty, and so is one of a daemon that stops.
        """
        return not self.finished and self._is_new_connection and self.job_id is not None

    def ended(self, job: Job | None) -> float:
        """The stream has ended; `job` is what asks_for_job asked for."""
        if job is not None and job.is_final and self.seq >= job.last_seq:
            self.finished = True
        if self.finished:
            return 0.0
        return self._pause(ConnectionFailed(f"the daemon at {self._target} ended the stream", job_id=self.job_id))

    def _read(self, raw: bytes) -> _Line:
        try:
            return _LINES.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise ProtocolError(f"a line of the stream is not an event: {exc}", job_id=self.job_id) from exc

    def _take(self, line: _Line, seq: int) -> Event:
        if seq != self.seq + 1:
            raise ProtocolError(f"event {seq} came after event {self.seq}", job_id=self.job_id)
        self.job_id = line.job_id or self.job_id
        self.seq = seq
        self.finished = line.event == "stream_finished"
        self._progressed()
        return Event(seq=seq, event=line.event, job_id=self.job_id or "", ts=line.ts, data=line.data)

    def _take_unnumbered(self, line: _Line) -> None:
        if line.event != "error":  # heartbeats, and what later versions may add
            self._patience.progressed()
            return
        code, message = str(line.data.get("code", "internal")), str(line.data.get("message", ""))
        error: ApiError = class_for(code, None)(message, code=code, job_id=self.job_id)
        if code in _FINAL_CODES or self._was_told_error:
            raise error
        # Another connection may mend it, once: what comes back without an event in between will come again.
        self._was_told_error = True

    def _progressed(self) -> None:
        self._patience.progressed()
        self._was_told_error = False
        self._is_new_connection = False

    def _pause(self, error: PipelineEngineError, retry_after: float | None = None) -> float:
        pause = self._patience.pause(retry_after)
        if pause is None:
            raise error
        return pause


class Waiting:
    """Waiting for the end of a job by reading its events in pages: what to ask next, and whether it is over.

    In pages, because the daemon bounds how long each of them takes: so the caller's deadline is kept to the second.
    """

    def __init__(self, job_id: str, *, timeout_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._job_id = job_id
        self._timeout_s = timeout_s
        self._clock = clock
        self._began = clock()
        self._seq = 0

    def is_over(self, job: Job) -> bool:
        """Whether the job is; if not, its next events are those to wait for."""
        self._seq = max(self._seq, job.last_seq)
        return job.is_final

    def next_page(self) -> Call[EventPage]:
        """The page to ask for. Raises DeadlineExceeded."""
        wait_s = LONGEST_PAGE_WAIT
        if self._timeout_s is not None:
            left = self._began + self._timeout_s - self._clock()
            if left <= 0:
                words = f"job {self._job_id} is not finished after {self._timeout_s:g} s"
                raise DeadlineExceeded(words, job_id=self._job_id)
            wait_s = min(wait_s, left)
        return _calls.get_events(self._job_id, after_seq=self._seq, wait_s=wait_s)

    def must_ask(self, page: EventPage) -> bool:
        """Whether the job itself is to be asked for: it is over, or has long been silent."""
        if not page.events:
            return True
        self._seq = page.events[-1].seq
        return page.events[-1].event == "stream_finished"
