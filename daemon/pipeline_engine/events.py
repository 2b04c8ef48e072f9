"""The event log's live side: an event is stored first, then the followers are woken."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from pipeline_engine.decoding import to_json
from pipeline_engine.errors import GoneError, NotFoundError, PipelineEngineError, UnavailableError
from pipeline_engine.models import JobId, JobStatus, now_rfc3339
from pipeline_engine.store.access import StoreAccess
from pipeline_engine.store.base import (
    CheckpointRecord,
    EventRecord,
    ExecutionRecord,
    IdempotencyRecord,
    JobChange,
    JobHead,
    NewJob,
)
from pipeline_engine.store.writer import StoreWriter, Write, change_size

TAIL_BYTES = 256 * 1024  # of each live job's last events stay in memory, for followers that keep up
BATCH_BYTES = 32 * 1024  # a follower gets at most this much at a time, or one event; one that is stuck holds it
LEAP_S = 1.0  # seconds by which the wall clock and the monotonic one may drift apart unnoticed
QUEUED_BYTES = 4 * 1024  # a longer first event, which has the job's input, is not kept: thousands of jobs may wait


class EventName:
    """The names of events, in the order in which a job may show them."""

    JOB_QUEUED = "job_queued"
    JOB_STARTED = "job_started"
    JOB_RESUMED = "job_resumed"
    STEP_STARTED = "step_started"
    STEP_PROGRESS = "step_progress"
    ITEM_STARTED = "item_started"
    PROVIDER_CHUNK = "provider_chunk"
    STEP_RETRYING = "step_retrying"
    ITEM_COMPLETED = "item_completed"
    STEP_COMPLETED = "step_completed"
    STEP_FAILED = "step_failed"
    STEP_CANCELLED = "step_cancelled"
    STEP_SKIPPED = "step_skipped"
    JOB_STATUS = "job_status"
    JOB_COMPLETED = "job_completed"
    JOB_FAILED = "job_failed"
    JOB_CANCELLED = "job_cancelled"
    STREAM_FINISHED = "stream_finished"


TERMINAL_EVENTS = {
    JobStatus.SUCCEEDED: EventName.JOB_COMPLETED,
    JobStatus.FAILED: EventName.JOB_FAILED,
    JobStatus.CANCELLED: EventName.JOB_CANCELLED,
}

Event = tuple[str, Any]  # a name and its data, which to_json takes


def event_line(seq: int, name: str, job_id: JobId, ts: str, data: bytes) -> bytes:
    """The line of an event, as the store and every follower get it; `data` is JSON."""
    return f'{{"seq":{seq},"event":"{name}","job_id":"{job_id}","ts":"{ts}","data":'.encode() + data + b"}\n"


def _wall_offset() -> float:
    return time.time() - time.monotonic()


class JobLog:
    """The events of one live job.

    Invariants: `last_seq` is what has been given out, `committed_seq` what is stored; a follower never sees an event
    past `committed_seq`. The tail holds the events `tail_start` to `committed_seq`.
    """

    def __init__(self, job_id: JobId, *, writer: StoreWriter, last_seq: int = 0) -> None:
        self.job_id = job_id
        self.last_seq = last_seq
        self.committed_seq = last_seq
        self.finished = False
        #: What is stored of a running job with its first event after the wall clock was set: the time stamps of what
        #: comes then tell nothing of how long it ran before.
        self.state_after_leap: Callable[[], object] | None = None
        self._wall_offset = _wall_offset()
        self._writer = writer
        self._tail: list[bytes] = []
        self._tail_bytes = 0
        self._wakers: set[trio.MemorySendChannel[None]] = set()
        self._closed = False

    def post(
        self,
        events: Iterable[Event] = (),
        *,
        new: NewJob | None = None,
        status: JobStatus | None = None,
        job: object = None,
        state: object = None,
        executions: Sequence[ExecutionRecord] = (),
        checkpoints: Sequence[CheckpointRecord] = (),
        artifacts: Sequence[str] = (),
        idempotency: IdempotencyRecord | None = None,
        finished_at: str | None = None,
    ) -> Write:
        """Give the events their seq and hand them, with what changes along with them, to the store's writer.

        The changes are encoded now, so what is handed in may change afterwards. A new job may be refused (see
        StoreWriter); nothing else is.
        """
        records = []
        seq = self.last_seq
        now = now_rfc3339()
        for name, data in events:
            seq += 1
            records.append(EventRecord(seq, name, event_line(seq, name, self.job_id, now, to_json(data))))
        if state is None and self.state_after_leap is not None and self._has_leapt():
            state = self.state_after_leap()
        change = JobChange(
            job_id=self.job_id,
            events=records,
            new=new,
            status=status,
            job=None if job is None else to_json(job),
            state=None if state is None else to_json(state),
            executions=executions,
            checkpoints=checkpoints,
            artifacts=artifacts,
            idempotency=idempotency,
            finished_at=finished_at,
        )
        final = status is not None and status.is_final
        write = self._writer.post(
            change,
            size=change_size(change),
            refusable=new is not None,
            on_commit=lambda: self._committed(records, final=final),
        )
        self.last_seq = seq
        return write

    async def append(self, events: Iterable[Event] = (), **changes: Any) -> None:
        """Like post, but return when all is committed. An error means that nothing is, and the seqs are free again."""
        before = self.last_seq
        write = self.post(events, **changes)
        after = self.last_seq
        try:
            await write.wait()
        except Exception:
            self.last_seq = before if self.last_seq == after else self.last_seq
            raise

    def _has_leapt(self) -> bool:
        before, self._wall_offset = self._wall_offset, _wall_offset()
        if abs(self._wall_offset - before) < LEAP_S:
            self._wall_offset = before  # what is only drifting adds up
            return False
        return True

    @property
    def has_room(self) -> bool:
        """Whether wait_for_room would not wait."""
        return self._writer.has_room

    async def wait_for_room(self) -> None:
        """Return when the store's writer is not too far behind: for those who post many events without waiting."""
        await self._writer.wait_for_room()

    def _committed(self, records: list[EventRecord], *, final: bool) -> None:
        if records:
            self.committed_seq = records[-1].seq
            for record in records:
                self._tail.append(record.line)
                self._tail_bytes += len(record.line)
            if self.committed_seq == 1 and self._tail_bytes > QUEUED_BYTES:
                self._trim(0)
            elif self._tail_bytes > 2 * TAIL_BYTES:
                self._trim(TAIL_BYTES)
        self.finished = self.finished or final
        if records or final:
            self._wake_followers()

    def _trim(self, keep_bytes: int) -> None:
        drop = 0
        while self._tail_bytes > keep_bytes:
            self._tail_bytes -= len(self._tail[drop])
            drop += 1
        del self._tail[:drop]

    def tail_after(self, seq: int, max_bytes: int) -> list[bytes] | None:
        """The committed lines after `seq` as far as they fit (one at least), or None when memory has them no more."""
        start = seq - (self.committed_seq - len(self._tail))
        if start < 0:
            return None
        lines: list[bytes] = []
        for index in range(start, len(self._tail)):
            line = self._tail[index]
            max_bytes -= len(line)
            if lines and max_bytes < 0:
                break
            lines.append(line)
        return lines

    def close(self) -> None:
        """The daemon stops while the job runs: followers end without `stream_finished`."""
        self._closed = True
        self._wake_followers()

    @property
    def closed(self) -> bool:
        return self._closed

    def add_waker(self, waker: trio.MemorySendChannel[None]) -> None:
        self._wakers.add(waker)

    def remove_waker(self, waker: trio.MemorySendChannel[None]) -> None:
        self._wakers.discard(waker)

    @property
    def follower_count(self) -> int:
        return len(self._wakers)

    def _wake_followers(self) -> None:
        for waker in self._wakers:
            # WouldBlock: it has been woken already and has not looked yet.
            with suppress(trio.WouldBlock):
                waker.send_nowait(None)


class Follower:
    """A cursor over a job's events: what is stored comes from the store, what is live from the log's tail.

    Its memory is one batch, however far it lags.
    """

    def __init__(
        self, job_log: JobLog, *, after_seq: int, woken: trio.MemoryReceiveChannel[None], log: EventLog
    ) -> None:
        self.seq = after_seq
        self._job_log = job_log
        self._woken = woken
        self._log = log

    @property
    def last_seq(self) -> int:
        """The job's last stored event; as long as `seq` is below it, next_batch waits for no new one."""
        return self._job_log.committed_seq

    async def next_batch(self, max_bytes: int = BATCH_BYTES) -> list[bytes] | None:
        """The next lines, at least one; None after the job's last event.

        Raises UnavailableError when the daemon stops before the job has ended, and GoneError or NotFoundError when what
        comes next was pruned or deleted meanwhile. While there are lines in memory there is
        no checkpoint here: whoever sends one batch after the other has them.
        """
        while True:
            lines = await self._ready(max_bytes)
            if lines:
                return lines
            if self._job_log.finished and self.seq >= self._job_log.committed_seq:
                return None
            if self._job_log.closed:
                raise UnavailableError("the daemon is stopping; follow again after the last seq that you have")
            await self._woken.receive()

    async def _ready(self, max_bytes: int) -> list[bytes]:
        if self.seq >= self._job_log.committed_seq:
            return []
        lines = self._job_log.tail_after(self.seq, max_bytes)
        if lines is None:
            events = await self._log.read(self._job_log.job_id, self.seq, max_bytes=max_bytes)
            if not events or events[-1].seq - self.seq != len(events):
                raise await self._log.loss(self._job_log.job_id)
            self.seq = events[-1].seq
            return [event.line for event in events]
        self.seq += len(lines)
        return lines


class EventLog:
    """The logs of all live jobs, and the way to follow any job."""

    def __init__(self, *, access: StoreAccess, writer: StoreWriter) -> None:
        self._access = access
        self._writer = writer
        self._live: dict[JobId, JobLog] = {}

    def open(self, job_id: JobId, *, last_seq: int = 0) -> JobLog:
        """The log of a job that becomes live: it is new, or it was loaded from the store."""
        job_log = self._live[job_id] = JobLog(job_id, writer=self._writer, last_seq=last_seq)
        return job_log

    def retire(self, job_id: JobId) -> None:
        """The job is no longer live: those who follow it from now on read the store."""
        self._live.pop(job_id, None)

    def close(self) -> None:
        for job_log in list(self._live.values()):
            job_log.close()

    @property
    def follower_count(self) -> int:
        return sum(job_log.follower_count for job_log in self._live.values())

    async def read(self, job_id: JobId, after_seq: int, *, max_bytes: int, limit: int = 1000) -> list[EventRecord]:
        def read() -> list[EventRecord]:
            return self._access.store.read_events(job_id, after_seq=after_seq, max_bytes=max_bytes, limit=limit)

        return await self._access.call(read)

    @asynccontextmanager
    async def follow(self, job_id: JobId, *, after_seq: int = 0) -> AsyncIterator[Follower]:
        """Follow a job from the event after `after_seq`. Raises NotFoundError, and GoneError when those were pruned."""
        job_log = self._live.get(job_id)
        if job_log is None or not job_log.committed_seq:
            job_log = await self._stored_log(job_id, after_seq)
        send, receive = trio.open_memory_channel[None](1)
        job_log.add_waker(send)
        try:
            yield Follower(job_log, after_seq=after_seq, woken=receive, log=self)
        finally:
            job_log.remove_waker(send)
            send.close()
            receive.close()

    async def loss(self, job_id: JobId) -> PipelineEngineError:
        """Why events that were stored are no longer there."""
        head = await self._access.call(self._access.store.head, job_id)
        return NotFoundError(f"job {job_id} was deleted") if head is None else _pruned(job_id, head)

    async def _stored_log(self, job_id: JobId, after_seq: int) -> JobLog:
        head = await self._access.call(self._access.store.head, job_id)
        if head is None:
            raise NotFoundError(f"there is no job {job_id}")
        job_log = self._live.get(job_id)
        if job_log is not None and not head.is_final:
            return job_log
        if job_log is None and not head.is_final:  # it ended while its head was read
            head = await self._access.call(self._access.store.head, job_id) or head
        if after_seq < head.pruned_seq:
            raise _pruned(job_id, head)
        job_log = JobLog(job_id, writer=self._writer, last_seq=head.last_seq)
        job_log.finished = head.is_final
        if not head.is_final:  # nobody runs it
            job_log.close()
        return job_log


def _pruned(job_id: JobId, head: JobHead) -> GoneError:
    words = f"events of {job_id} up to {head.pruned_seq} were pruned; begin with after_seq={head.pruned_seq}"
    return GoneError(words, details={"pruned_seq": head.pruned_seq, "last_seq": head.last_seq})
