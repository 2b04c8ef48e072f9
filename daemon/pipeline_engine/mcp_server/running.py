"""Waits for jobs while the client is told how far they are."""

from __future__ import annotations

import logging
import uuid
from contextlib import suppress
from typing import Any

import trio

from pipeline_engine.mcp_server.tool import Call, Report
from pipeline_engine_sdk import AsyncPipelineEngineClient, Event, Job, PipelineEngineError

REPORT_INTERVAL = 0.5  # seconds

#: How long an end waits for the daemon to confirm a cancel, in seconds. The daemon carries it out in any case, and
#: clients kill a server that goes on for two seconds after they have closed its input.
CANCEL_TIMEOUT = 1.5

#: A step of one call has no total. So many chunks count as half of it, and it never counts as a whole.
HALF_STEP = 100

SHOWN_STEPS = 3  # running steps that the message names
SHOWN_TEXT = 60  # characters of the text that comes in

logger = logging.getLogger(__name__)


async def run_job(call: Call, request: dict[str, Any], *, wait_s: float) -> Job:
    """The job at its end, or as it is after `wait_s` seconds; from then on it needs nobody who waits.

    When the caller is cancelled before, so is the job: nobody would read what it makes.
    """
    key = uuid.uuid4().hex
    try:
        job = await call.client.create_job(request, idempotency_key=key)
        return await wait_for_job(call, job.id, wait_s=wait_s)
    except* trio.Cancelled:  # out of a nursery it comes in a group
        with trio.move_on_after(CANCEL_TIMEOUT, shield=True) as scope, suppress(PipelineEngineError):
            # The submission may have been under way: with its key it is the same job.
            job = await call.client.create_job(request, idempotency_key=key)
            await call.client.cancel_job(job.id, reason="the MCP client cancelled its call, or ended")
        if scope.cancelled_caught:
            logger.warning("the daemon did not confirm within %g s that the job is cancelled", CANCEL_TIMEOUT)
        raise


async def wait_for_job(call: Call, job_id: str, *, wait_s: float) -> Job:
    """The job at its end, or as it is after `wait_s` seconds."""
    job = await call.client.get_job(job_id)
    if job.is_final:
        return job
    with trio.move_on_after(wait_s):
        await _follow(call.client, job_id, call.report)
    return await call.client.get_job(job_id)


async def _follow(client: AsyncPipelineEngineClient, job_id: str, report: Report) -> None:
    """Wait for the end of the job. Raises the errors of the SDK."""
    progress = _Progress()
    failure: PipelineEngineError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_report_changes, progress, report)
        try:
            async with client.follow_job(job_id) as events:
                async for event in events:
                    progress.take(event)
        except PipelineEngineError as exc:
            failure = exc  # raised below: out of the nursery it would come in a group
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _report_changes(progress: _Progress, report: Report) -> None:
    reported = -1.0
    while True:
        if progress.value > reported:  # each notification must tell of more progress than the one before
            reported = progress.value
            await report(reported, progress.total, progress.message)
        await trio.sleep(REPORT_INTERVAL)


class _Progress:
    """What a job's events tell, in the terms of MCP: `value` of `total`, and a `message` for people.

    They count steps; a running step counts as the share of it that is done. `value` never falls.
    """

    def __init__(self) -> None:
        self.value = 0.0
        self.total: int | None = None
        self._names: dict[str, str] = {}
        self._running: dict[str, _RunningStep] = {}
        self._ended: set[str] = set()

    @property
    def message(self) -> str:
        """For people: how many steps are done, and what runs."""
        if self.total is None:
            return "queued"
        running = [f"{self._names.get(step_id) or step_id}{step}" for step_id, step in self._running.items()]
        rest = len(running) - SHOWN_STEPS
        running[SHOWN_STEPS:] = [f"{rest} more"] if rest > 0 else []
        return "; ".join([f"{len(self._ended)} of {self.total} steps done", *running])

    def take(self, event: Event) -> None:
        """Count an event."""
        step_id = str(event.data.get("step_id"))
        match event.event:
            case "job_queued" | "job_started":
                steps = event.data.get("step_executions") or []
                self._names = {step["step_id"]: step.get("name", "") for step in steps}
                self.total = len(steps) or None
            case "step_started":
                self._running[step_id] = _RunningStep()
            case "step_progress" if step_id in self._running:
                self._running[step_id].note(event.data)
            case "provider_chunk" if step_id in self._running:
                self._running[step_id].take_chunk(event.data)
            case "step_completed" | "step_failed" | "step_cancelled" | "step_skipped":
                self._running.pop(step_id, None)
                self._ended.add(step_id)
        parts = sum(step.share for step in self._running.values())
        self.value = max(self.value, round(len(self._ended) + parts, 4))


class _RunningStep:
    def __init__(self) -> None:
        self._chunks = 0
        self._done = 0
        self._total = 0
        self._note = ""
        self._tail = ""  # of the text that has come in

    @property
    def share(self) -> float:
        if self._total:
            return self._done / self._total
        counted = self._chunks + 1  # that it runs is progress too
        return counted / (counted + HALF_STEP)

    def take_chunk(self, data: dict[str, Any]) -> None:
        self._chunks += 1
        self._note = ""
        if data.get("index") == 0:
            self._tail = ""  # a new attempt voids the text of the one before
        self._tail = (self._tail + str(data.get("content") or ""))[-SHOWN_TEXT:]

    def note(self, data: dict[str, Any]) -> None:
        self._note = str(data.get("note") or "")
        if not self._note:  # one with a note tells of a model that is loading, not of items
            self._done, self._total = data.get("done") or 0, data.get("total") or 0

    def __str__(self) -> str:
        if self._note:
            return f": {self._note}"
        if self._total:
            return f": {self._done}/{self._total} items"
        return f": {self._chunks} chunks … {' '.join(self._tail.split())}" if self._chunks else ""
