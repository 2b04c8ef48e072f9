"""Runs one job from its start, or its restart, to its terminal event."""

from __future__ import annotations

import enum
import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
import trio

from pipeline_engine.decoding import from_stored_json
from pipeline_engine.errors import ErrorCode, StoreError
from pipeline_engine.events import TERMINAL_EVENTS, Event, EventName, JobLog
from pipeline_engine.models import (
    Job,
    JobError,
    JobId,
    JobInput,
    JobStatus,
    Limits,
    PipelineDef,
    StepExecution,
    StepId,
    StepStatus,
    StoredCheckpoint,
    now_rfc3339,
)
from pipeline_engine.scheduler import Scheduler, collect_result, new_executions
from pipeline_engine.steps.context import ItemKey, JobContext, JobState, PlacedCheckpoint, Services
from pipeline_engine.steps.run_time import run_time_noted
from pipeline_engine.steps.runner import batch_size
from pipeline_engine.store.access import StoreAccess
from pipeline_engine.store.age_clock import AgeClock
from pipeline_engine.store.base import ExecutionRecord, JobRecord
from pipeline_engine.store.writer import FIRST_RETRY, MAX_RETRY
from pipeline_engine.stored_jobs import read_input
from pipeline_engine.tracing import Span, Start, TraceHeaders

log = logging.getLogger(__name__)


class Stop(enum.Enum):
    """Why a running job's scope was cancelled."""

    CANCELLED = enum.auto()
    INTERRUPTED = enum.auto()


@dataclass(slots=True, eq=False)
class LiveJob:
    """A job that is queued or running.

    `scope` is there while it runs; `ended` is set when its last event is stored, or when the daemon lets go of it.
    `final` is what a look into the store would give, once the job's last event is there.
    """

    job: Job
    log: JobLog
    payload: tuple[PipelineDef, JobInput] | None = None
    payload_bytes: int = 0
    resumed: bool = False
    scope: trio.CancelScope | None = None
    stop: Stop | None = None
    cancel_reason: str = ""
    trace: TraceHeaders | None = None
    ended: trio.Event = field(default_factory=trio.Event)
    final: Job | None = None

    def request_stop(self, stop: Stop) -> None:
        """Stop the job's steps. The first reason stands, but a cancellation goes before the end of the daemon."""
        if self.stop is None or stop is Stop.CANCELLED:
            self.stop = stop
        if self.scope is not None:
            self.scope.cancel()


class JobRunner:
    """Takes live jobs to their end."""

    def __init__(self, *, access: StoreAccess, services: Services, max_restarts: int, clock: AgeClock) -> None:
        self._access = access
        self._store = access.store
        self._services = services
        self._max_restarts = max_restarts
        self._clock = clock

    async def run(self, live: LiveJob) -> None:
        """Run the job; it ends with its terminal event, or without one when the daemon stops (Stop.INTERRUPTED)."""
        with self._services.tracer.span(lambda: _describe(live), parent=live.trace) as span:
            await self._run(live, span)

    async def _run(self, live: LiveJob, span: Span) -> None:
        context: JobContext | None = None
        error: JobError | None = None
        cut = False
        try:
            context = await self._load_at_last(live)
            error, cut = (None, True) if context is None else await self._run_steps(live, context)
        except Exception as exc:
            log.exception("internal error in job %s", live.job.id)
            words = f"internal error ({type(exc).__name__}); the daemon's log has more under job {live.job.id}"
            error = JobError(code=ErrorCode.INTERNAL, message=words)
        if cut and live.stop is Stop.INTERRUPTED:
            span.fail(ErrorCode.INTERRUPTED, "the daemon stopped; the job goes on after its next start")
            await self._let_go(live, context)
            return
        status, error = _outcome(live, error, cut=cut)
        if error is not None:
            span.fail(error.code, error.message)
        await self._end_somehow(live, context, status, error)

    async def _run_steps(self, live: LiveJob, context: JobContext) -> tuple[JobError | None, bool]:
        """The error that failed the job, and whether it was cut short: stopped, or out of time."""
        if live.stop is not None:
            return None, True
        refusal = self._refusal(context) if live.resumed else None
        if refusal is not None:
            return refusal, False
        self._begin(live, context)
        with trio.CancelScope() as scope:
            live.scope = scope
            try:
                if live.job.timeout_s is None:
                    return await Scheduler(context).run(), False
                scope.deadline = trio.current_time() + live.job.timeout_s - context.ran_s
                async with run_time_noted(context, live.job.timeout_s):
                    return await Scheduler(context).run(), False
            finally:
                live.scope = None
        return None, True

    # the beginning

    async def _load_at_last(self, live: LiveJob) -> JobContext | None:
        """What the store has of the job, once it can be read; None if the daemon stops before that.

        A job that is cancelled meanwhile ends when it can be read too: its end tells of all its steps.
        """
        pause = FIRST_RETRY
        while True:
            try:
                return await self._load(live)
            except StoreError as exc:
                log.warning("job %s waits: what is stored of it cannot be read: %s", live.job.id, exc.message)
            if live.stop is Stop.INTERRUPTED:
                return None
            with trio.CancelScope() as live.scope:
                await trio.sleep(pause)
            live.scope = None
            pause = min(pause * 2, MAX_RETRY)

    async def _load(self, live: LiveJob) -> JobContext:
        job_id = live.job.id
        payload = live.payload
        if payload is None:
            payload = await self._access.call(self._read_payload, job_id)
        definition, job_input = payload
        live.payload = None
        executions = new_executions(definition.steps)
        checkpoints: list[PlacedCheckpoint] = []
        attempts: dict[ItemKey, int] = {}
        state = JobState(trace=live.trace)
        if live.resumed or live.job.parent_job_id is not None:
            record, checkpoints = await self._access.call(self._read_progress, job_id)
            for text in record.executions:
                execution = from_stored_json(text, StepExecution)
                executions[execution.step_id] = execution
            state = from_stored_json(record.state, JobState) if record.state else state
            if live.resumed:
                attempts = await self._access.call(self._read_attempts, job_id)
                state.ran_s += await self._access.call(self._ran_since, record)
        limits = live.job.limits or Limits()
        context = JobContext(
            job=live.job,
            definition=definition,
            job_input=job_input,
            log=live.log,
            services=self._services,
            state=state,
            executions=executions,
            checkpoints=checkpoints,
            attempts=attempts,
            limits=limits,
        )
        for execution in executions.values():
            if execution.reused_from is None and execution.usage is not None:
                context.usage += execution.usage
                context.budget.spend_tokens(execution.usage)
        context.budget.calls = _calls_made(definition, attempts)
        return context

    def _begin(self, live: LiveJob, context: JobContext) -> None:
        job = live.job
        job.updated_at = max(now_rfc3339(), job.updated_at)  # the wall clock may have been set back
        events: list[Event] = []
        if live.resumed:
            job.restarts += 1
            job.last_seq = live.log.last_seq + 1
            data = {"restarts": job.restarts, "steps": list(context.executions.values())}
            events.append((EventName.JOB_RESUMED, data))
        else:
            job.status = JobStatus.RUNNING
            job.started_at = job.updated_at
            job.last_seq = live.log.last_seq + 2
            shown = _shown(job, context)
            events += [(EventName.JOB_STARTED, shown), (EventName.JOB_STATUS, shown)]
        live.log.post(events, status=JobStatus.RUNNING, job=summary_of(job), state=context.state())
        live.log.state_after_leap = context.state

    def _refusal(self, context: JobContext) -> JobError | None:
        """Why a job may not go on after a restart of the daemon."""
        if context.job.restarts >= self._max_restarts:
            words = f"the daemon was restarted {context.job.restarts} times under this job (limits.max_restarts)"
            return JobError(code=ErrorCode.INTERRUPTED, message=words)
        for step in context.graph.definition.steps:
            if context.executions[step.id].status is StepStatus.RUNNING and not context.may_repeat(step):
                begun = {shard_key for step_id, shard_key in context.attempts if step_id == step.id}
                if begun - context.checkpoints(step.id).keys():
                    words = f"step {step.id!r} was interrupted and may not be started again (idempotent: false)"
                    return JobError(code=ErrorCode.INTERRUPTED, message=words, details={"step_id": step.id})
        return None

    # the end

    async def _end_somehow(
        self, live: LiveJob, context: JobContext | None, status: JobStatus, error: JobError | None
    ) -> None:
        """End the job; if what it made can never be stored, without it. Never takes other jobs along."""
        try:
            try:
                await self._end(live, context, status, error)
            except Exception as exc:
                log.exception("the end of job %s cannot be stored", live.job.id)
                words = f"internal error ({type(exc).__name__}); the daemon's log has more under job {live.job.id}"
                await self._end(live, None, JobStatus.FAILED, JobError(code=ErrorCode.INTERNAL, message=words))
        except Exception:
            log.exception("job %s cannot be ended; it goes on after the next start", live.job.id)
            live.log.close()

    async def _end(self, live: LiveJob, context: JobContext | None, status: JobStatus, error: JobError | None) -> None:
        """Append the last events, as one change. Not even a crash can leave them half written."""
        job = live.job
        job.status, job.error = status, error
        job.finished_at = job.updated_at = max(now_rfc3339(), job.updated_at)
        events: list[Event] = []
        records: list[ExecutionRecord] = []
        if context is not None:
            job.usage = context.usage
            pending = StepStatus.CANCELLED if status is JobStatus.CANCELLED else StepStatus.SKIPPED
            events, records = Scheduler(context).end_unfinished(pending=pending)
        job.last_seq = live.log.last_seq + len(events) + 3
        shown = _shown(job, context)
        events.append((EventName.JOB_STATUS, shown))
        if context is not None:
            shown = msgspec.structs.replace(shown, result=collect_result(context))
        events.append((TERMINAL_EVENTS[status], shown))
        token = {"job_id": job.id, "seq": job.last_seq}
        events.append((EventName.STREAM_FINISHED, {"status": status, "resume_token": token}))
        await live.log.append(
            events, status=status, job=summary_of(job), executions=records, finished_at=self._clock.stamp()
        )
        if context is not None:
            live.final = msgspec.structs.replace(shown, input=context.input)
        _log_end(job, ran_s=0.0 if context is None else context.ran_s)

    async def _let_go(self, live: LiveJob, context: JobContext | None) -> None:
        """The daemon stops: the job stays as it is in the store, and goes on after the next start."""
        if context is not None:
            state = context.state()
            if live.stop is Stop.CANCELLED:  # meanwhile
                state.cancel_reason = live.cancel_reason
            await live.log.append(state=state)

    # reading the store

    def _read_payload(self, job_id: JobId) -> tuple[PipelineDef, JobInput]:
        record = self._store.get_job(job_id)
        assert record is not None
        return from_stored_json(record.definition, PipelineDef), read_input(self._store, job_id)

    def _read_progress(self, job_id: JobId) -> tuple[JobRecord, list[PlacedCheckpoint]]:
        record = self._store.get_job(job_id)
        assert record is not None
        return record, [
            (stored.index, from_stored_json(stored.checkpoint, StoredCheckpoint))
            for stored in self._store.read_checkpoints(job_id)
        ]

    def _read_attempts(self, job_id: JobId) -> dict[ItemKey, int]:
        """The highest attempt at each item, so that the next one voids what an interrupted one has shown."""
        attempts: dict[ItemKey, int] = {}
        seq = 0
        while events := self._store.read_events(job_id, after_seq=seq, names=(EventName.ITEM_STARTED,)):
            for event in events:
                data = from_stored_json(event.line, _ItemStartedLine).data
                attempts[data.step_id, data.shard_key] = data.attempt
            seq = events[-1].seq
        return attempts

    def _ran_since(self, record: JobRecord) -> float:
        """For how many seconds the job ran after its state was last written, by the time stamps of its events."""
        last = self._store.last_event(record.job_id)
        if last is None or not record.state:
            return 0.0
        saved_at = from_stored_json(record.state, JobState).saved_at
        if not saved_at:
            return 0.0
        began = datetime.fromisoformat(saved_at)
        ended = from_stored_json(last.line, _TimedLine).ts
        return max(0.0, (ended - began).total_seconds())


def _calls_made(definition: PipelineDef, attempts: Mapping[ItemKey, int]) -> int:
    """How many provider calls stand behind those attempts: handlers need none, and embeddings share them."""
    begun: Counter[StepId] = Counter()
    for (step_id, _), count in attempts.items():
        begun[step_id] += count
    steps = [step for step in definition.steps if step.provider_profile_id is not None]
    return sum(math.ceil(begun[step.id] / batch_size(step)) for step in steps)


def _outcome(live: LiveJob, error: JobError | None, *, cut: bool) -> tuple[JobStatus, JobError | None]:
    if error is not None:
        return JobStatus.FAILED, error
    if not cut:
        return JobStatus.SUCCEEDED, None
    if live.stop is Stop.CANCELLED:
        words = live.cancel_reason or "the job was cancelled"
        return JobStatus.CANCELLED, JobError(code=ErrorCode.CANCELLED, message=words)
    words = f"the job took longer than its timeout_s of {live.job.timeout_s:g} s"
    return JobStatus.FAILED, JobError(code=ErrorCode.TIMEOUT, message=words)


def _describe(live: LiveJob) -> Start:
    job = live.job
    attributes = {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": job.pipeline_type,
        "pipeline_engine.job.id": job.id,
        "pipeline_engine.job.mode": job.mode.value,
        "pipeline_engine.job.restarts": job.restarts + live.resumed,
    }
    return Start(f"invoke_workflow {job.pipeline_type}", attributes)


def _log_end(job: Job, *, ran_s: float) -> None:
    """One line for each job: what an operator asks first. No texts of the job: those may be anybody's."""
    reason = ""
    if job.status is JobStatus.FAILED and job.error is not None:
        step_id = job.error.details.get("step_id")
        reason = f": {job.error.code}" + (f" in step {step_id}" if step_id else "")
    level = logging.WARNING if job.status is JobStatus.FAILED else logging.INFO
    log.log(level, "job %s of %r %s after %.1f s%s", job.id, job.pipeline_type, job.status.value, ran_s, reason)


def summary_of(job: Job) -> Job:
    """The job as its row and lists have it: without input, result and steps."""
    return msgspec.structs.replace(job, input=None, result=None, step_executions=None)


def _shown(job: Job, context: JobContext | None) -> Job:
    """The job as events have it: without input and result."""
    executions = None if context is None else list(context.executions.values())
    return msgspec.structs.replace(job, input=None, result=None, step_executions=executions)


class _ItemStartedData(msgspec.Struct):
    step_id: StepId
    attempt: int
    shard_key: str | None = None


class _ItemStartedLine(msgspec.Struct):
    data: _ItemStartedData


class _TimedLine(msgspec.Struct):
    ts: datetime
