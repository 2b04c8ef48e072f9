"""Owns the jobs: takes them in, queues and runs them, cancels them, and resumes them after a restart."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import trio

from pipeline_engine.admission import Admission, without_defaults
from pipeline_engine.decoding import from_stored_json, to_stored_json
from pipeline_engine.errors import (
    ConflictError,
    NotFoundError,
    PipelineEngineError,
    QueueFullError,
    StoreFullError,
    UnavailableError,
)
from pipeline_engine.events import EventLog, EventName, Follower
from pipeline_engine.idempotency import IdempotencyKey, IdempotencyKeys
from pipeline_engine.job_queue import JobQueue
from pipeline_engine.job_runner import JobRunner, LiveJob, Stop, summary_of
from pipeline_engine.models import Job, JobId, JobRequest, JobStatus, PipelineDef, RerunRequest
from pipeline_engine.reruns import plan_rerun, read_parent
from pipeline_engine.scheduler import new_executions
from pipeline_engine.steps.context import JobState, Services, StepStats
from pipeline_engine.steps.handler_threads import HandlerThreads
from pipeline_engine.store.access import StoreAccess
from pipeline_engine.store.age_clock import AgeClock
from pipeline_engine.store.base import DeleteJobs, JobFilter, NewJob
from pipeline_engine.store.writer import StoreWriter
from pipeline_engine.stored_jobs import read_checkpoints, read_job
from pipeline_engine.tracing import TraceHeaders

log = logging.getLogger(__name__)

INTERRUPTED_TOOL_GRACE = 1.0  # seconds from SIGTERM to SIGKILL for a tool whose job goes on after the next start
LET_GO_TIMEOUT = 15.0  # seconds that interrupted jobs have to clean up: a tool's grace, and their last writes
FAILING_LET_GO_TIMEOUT = 1.0  # seconds that they have while the store cannot be written
KEPT_PAYLOAD_BYTES = 64 * 1024 * 1024  # of queued jobs' inputs stay in memory; the rest is read again when it is needed


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """See contract 8, `[limits]`."""

    max_running_jobs: int = 64
    max_queued_jobs: int = 10_000
    max_restarts: int = 20
    max_store_bytes: int | None = None


class Engine:
    """All jobs of one store. `run` must be running for anything to happen; see `running`."""

    def __init__(
        self,
        *,
        access: StoreAccess,
        writer: StoreWriter,
        services: Services,
        admission: Admission,
        limits: EngineLimits | None = None,
        clock: AgeClock | None = None,
        limit_tool_grace: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.admission = admission
        self._access = access
        self._store = access.store
        self._writer = writer
        self._limits = limits = limits or EngineLimits()
        self._events = EventLog(access=access, writer=writer)
        self._services = services
        self._clock = clock = clock or AgeClock()
        self._limit_tool_grace = limit_tool_grace
        self._runner = JobRunner(access=access, services=services, max_restarts=limits.max_restarts, clock=clock)
        self._live: dict[JobId, LiveJob] = {}
        self._queue = JobQueue()
        self._stopped: list[LiveJob] = []  # while they waited: they end at once, whatever runs
        self._running: set[LiveJob] = set()
        self._keys = IdempotencyKeys(access=access)
        self._wake = trio.Event()
        self._draining = False
        self._abandoning = False
        self._kept_bytes = 0
        self._accepting = 0  # jobs that are being stored
        self.next_end = trio.Event()  # set when the next job ends or is deleted, and then replaced
        self.stopped = trio.Event()  # set when `run` has let go of every job
        self.finished: Counter[JobStatus] = Counter()  # jobs that ended since the start

    def use_settings(self, *, limits: EngineLimits, services: Services) -> None:
        """These hold from now on; a job that runs keeps the services that it began with."""
        self._limits, self._services = limits, services
        restarts, clock = limits.max_restarts, self._clock
        self._runner = JobRunner(access=self._access, services=services, max_restarts=restarts, clock=clock)
        self._wake.set()  # more jobs may run than before

    # the owner of all running jobs

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run jobs until drained; started() when what the last run of the daemon left is in the queue again."""
        async with trio.open_nursery() as jobs:
            await self._recover()
            task_status.started()
            while True:
                while (live := self._next()) is not None:
                    self._kept_bytes -= live.payload_bytes
                    self._running.add(live)
                    jobs.start_soon(self._run_job, live)
                if self._abandoning:
                    jobs.cancel_scope.cancel()
                if self._abandoning or (self._draining and not self._running):
                    break
                await self._wake.wait()
                self._wake = trio.Event()
        self._events.close()
        for live in self._live.values():
            live.ended.set()  # those that wait for a queued job need not wait for a daemon that stops
        self.stopped.set()

    def _next(self) -> LiveJob | None:
        """The job that may start now."""
        if self._stopped:
            return self._stopped.pop()
        if self._draining or not self._queue or len(self._running) >= self._limits.max_running_jobs:
            return None
        return self._queue.pop()

    async def _run_job(self, live: LiveJob) -> None:
        try:
            await self._runner.run(live)
        finally:
            self._running.discard(live)
            self._retire(live)
            self._wake.set()

    def _retire(self, live: LiveJob) -> None:
        if live.log.finished:
            self.finished[live.job.status] += 1
            self._events.retire(live.job.id)
            self._live.pop(live.job.id, None)
            self._services.artifacts.release(live.job.id)
            self._tell_of_end()
        live.ended.set()

    def _tell_of_end(self) -> None:
        self.next_end.set()
        self.next_end = trio.Event()

    async def _recover(self) -> None:
        """Queue what the last run of the daemon left: running jobs go on first, queued ones keep their order."""
        records = await self._access.call(self._store.unfinished_jobs)
        for record in records:
            job = from_stored_json(record.job, Job)
            live = LiveJob(job, self._events.open(record.job_id, last_seq=record.last_seq))
            live.resumed = record.status is JobStatus.RUNNING
            state = from_stored_json(record.state, JobState) if record.state else JobState()
            live.trace = state.trace
            if state.cancel_reason is not None:
                live.cancel_reason = state.cancel_reason
                live.request_stop(Stop.CANCELLED)
            self._enqueue(live)
        if records:
            running = sum(record.status is JobStatus.RUNNING for record in records)
            log.info("resuming %d running and %d queued jobs", running, len(records) - running)

    def _enqueue(self, live: LiveJob) -> None:
        self._live[live.job.id] = live
        self._queue.push(live)
        if live.stop is not None:
            self._stop_waiting(live)
        self._wake.set()

    def _stop_waiting(self, live: LiveJob) -> None:
        self._queue.remove(live)
        self._stopped.append(live)
        self._wake.set()

    async def drain(self, grace_s: float) -> None:
        """Accept nothing more, let running jobs finish for `grace_s` seconds, and interrupt the rest.

        Interrupted and queued jobs go on after the next start. `run` returns when the last job has let go.
        """
        self._draining = True
        self._wake.set()
        with trio.move_on_after(grace_s):
            await self._wait_for_running()
        self._limit_tool_grace(INTERRUPTED_TOOL_GRACE)
        for live in list(self._running):
            live.request_stop(Stop.INTERRUPTED)
        # A store that fails takes no last writes: what matters is stored already.
        timeout = LET_GO_TIMEOUT if self._writer.failure is None else FAILING_LET_GO_TIMEOUT
        with trio.move_on_after(timeout) as scope:
            await self._wait_for_running()
        if scope.cancelled_caught:
            log.error("%d jobs did not let go in time; they go on after the next start", len(self._running))
            self._abandoning = True
            self._wake.set()

    async def _wait_for_running(self) -> None:
        for live in list(self._running):
            await live.ended.wait()

    @property
    def refusal(self) -> PipelineEngineError | None:
        """Why no new job is accepted now; None when jobs are."""
        if self._draining:
            return UnavailableError("the daemon is stopping")
        return self._writer.failure or self._services.artifacts.failure

    @property
    def running_count(self) -> int:
        return len(self._running)

    @property
    def handler_threads(self) -> HandlerThreads:
        return self._services.handler_threads

    @property
    def step_stats(self) -> StepStats:
        return self._services.step_stats

    @property
    def queued_count(self) -> int:
        return len(self._queue)

    @property
    def follower_count(self) -> int:
        """Those who follow a job that is not finished."""
        return self._events.follower_count

    # taking jobs in

    async def submit(
        self, request: JobRequest, *, idempotency: IdempotencyKey | None = None, trace: TraceHeaders | None = None
    ) -> Job:
        """Accept a job: it is stored when this returns. The same idempotency key and body give the same job.

        `trace` is the trace context that its span is a child of.
        Raises InvalidRequestError, UnknownPipelineError, ConflictError, GoneError, QueueFullError, UnavailableError,
        StoreFullError.
        """
        async with self._keys.hold(idempotency) as earlier:
            if earlier is not None:
                return await self.get_job(earlier)
            if request.parent_job_id is not None:
                return await self._rerun_by_request(request, idempotency, trace)
            self.admission.check_no_rerun(request)
            definition = self.admission.definition_of(request)
            job_input = await self.admission.complete_input(definition, request.input)
            job = self.admission.new_job(
                definition,
                job_input,
                mode=request.mode,
                priority=request.priority or 0,
                labels=request.labels,
                timeout_s=request.timeout_s,
                limits=request.limits,
                dry_run=request.dry_run or False,
            )
            inline = request.pipeline is not None
            return await self._accept(job, definition, inline=inline, idempotency=idempotency, trace=trace)

    async def rerun(
        self,
        parent_id: JobId,
        request: RerunRequest,
        *,
        idempotency: IdempotencyKey | None = None,
        trace: TraceHeaders | None = None,
    ) -> Job:
        """Accept a rerun of a job, which may still be running. Raises what submit does, and NotFoundError."""
        async with self._keys.hold(idempotency) as earlier:
            if earlier is not None:
                return await self.get_job(earlier)
            return await self._rerun(parent_id, request, idempotency=idempotency, trace=trace)

    async def _rerun_by_request(
        self, request: JobRequest, idempotency: IdempotencyKey | None, trace: TraceHeaders | None
    ) -> Job:
        assert request.parent_job_id is not None
        given = request.input if request.input.sources or request.input.options else None
        rerun = RerunRequest(
            from_step_id=request.from_step_id, reuse_upstream=request.reuse_upstream, override_input=given
        )
        return await self._rerun(request.parent_job_id, rerun, asked=request, idempotency=idempotency, trace=trace)

    async def _rerun(
        self,
        parent_id: JobId,
        request: RerunRequest,
        *,
        asked: JobRequest | None = None,
        idempotency: IdempotencyKey | None,
        trace: TraceHeaders | None,
    ) -> Job:
        parent = await self._access.call(read_parent, self._store, parent_id)
        definition, inline = parent.definition, parent.record.inline
        if asked is not None and (asked.pipeline is not None or asked.pipeline_type is not None):
            definition, inline = self.admission.definition_of(asked), asked.pipeline is not None
        elif not inline and request.pipeline == "latest":
            definition = self.admission.pipelines.find(parent.job.pipeline_type).definition
        job_input = request.override_input or without_defaults(parent.job_input, parent.definition)
        inherited_from = parent_id if request.override_input is None else None
        path = "override_input" if asked is None else "input"
        job_input = await self.admission.complete_input(definition, job_input, path=path, inherited_from=inherited_from)
        job = self.admission.new_rerun(parent.job, parent.definition, definition, job_input, request, asked=asked)
        plan = await self._access.call(partial(plan_rerun, parent, definition, request, job_id=job.id))
        try:
            await self._hold_artifacts(job.id, plan.artifacts, parent_id=parent_id)
            return await self._accept(
                job,
                definition,
                inline=inline,
                idempotency=idempotency,
                trace=trace,
                executions=plan.executions,
                checkpoints=plan.checkpoints,
                artifacts=plan.artifacts,
            )
        except BaseException:
            self._services.artifacts.release(job.id)
            raise

    async def _hold_artifacts(self, job_id: JobId, artifacts: Sequence[str], *, parent_id: JobId) -> None:
        """From here on they stay, if they are still there: as long as the parent is, so are they."""
        self._services.artifacts.hold(job_id, artifacts)
        if artifacts and await self._access.call(self._store.head, parent_id) is None:
            raise NotFoundError(f"there is no job {parent_id}")

    async def _accept(
        self,
        job: Job,
        definition: PipelineDef,
        *,
        inline: bool,
        idempotency: IdempotencyKey | None,
        trace: TraceHeaders | None,
        **changes: Any,
    ) -> Job:
        if self.refusal is not None:
            raise self.refusal
        self._check_room(job)
        # What a free place waits for is started in the next turn of the event loop.
        waiting = len(self._queue) + self._accepting - max(0, self._limits.max_running_jobs - len(self._running))
        if waiting >= self._limits.max_queued_jobs:
            raise QueueFullError(f"{waiting} jobs are waiting (limits.max_queued_jobs); try again later")
        shown = msgspec.structs.replace(job, step_executions=list(new_executions(definition.steps).values()))
        new = NewJob(
            pipeline_type=job.pipeline_type,
            inline=inline,
            priority=job.priority,
            labels=job.labels,
            created_at=job.created_at,
            definition=to_stored_json(definition),
        )
        live = LiveJob(summary_of(job), self._events.open(job.id), trace=trace)
        self._accepting += 1
        try:
            write = live.log.post(
                [(EventName.JOB_QUEUED, shown)],
                new=new,
                status=JobStatus.QUEUED,
                job=live.job,
                state=None if trace is None else JobState(trace=trace),
                idempotency=None if idempotency is None else idempotency.record(used_at=self._clock.now()),
                **changes,
            )
            # Shielded: a job that is stored must come into the queue even if the client has left meanwhile.
            with trio.CancelScope(shield=True):
                await write.wait()
        except BaseException:
            self._events.retire(job.id)
            live.ended.set()
            raise
        finally:
            self._accepting -= 1
        self._keep_payload(live, definition, job, size=write.size)
        self._enqueue(live)
        return shown

    def _check_room(self, job: Job) -> None:
        """Raises StoreFullError. Jobs that were accepted may grow beyond the limit: what they made is not lost."""
        limit = self._limits.max_store_bytes
        used = self._store.used_bytes + self._services.artifacts.used_bytes
        if limit is not None and used + input_size(job) > limit:
            words = f"the store holds {used} of {limit} bytes (limits.max_store_bytes); delete jobs"
            raise StoreFullError(words)

    def _keep_payload(self, live: LiveJob, definition: PipelineDef, job: Job, *, size: int) -> None:
        """Keep the input of a job that is about to run; many large ones that wait would fill the memory."""
        assert job.input is not None
        if self._kept_bytes + size <= KEPT_PAYLOAD_BYTES:
            self._kept_bytes += size
            live.payload, live.payload_bytes = (definition, job.input), size

    # stopping jobs

    async def cancel(self, job_id: JobId, reason: str = "") -> Job:
        """Cancel a job; the answer is the job once it is over. A job that is over stays as it is."""
        live = self._live.get(job_id)
        if live is not None:
            if live.stop is not Stop.CANCELLED:
                live.cancel_reason = reason
                live.request_stop(Stop.CANCELLED)
                # Stored at once: a crash before the job has ended must not bring it back to life.
                live.log.state_after_leap = None
                live.log.post(state=JobState(cancel_reason=reason, trace=live.trace))
                if live in self._queue:
                    self._stop_waiting(live)
            await live.ended.wait()
        return await self.get_job(job_id)

    async def wait(self, job_id: JobId) -> Job:
        """The job once it is over, as get_job gives it."""
        live = self._live.get(job_id)
        if live is not None:
            await live.ended.wait()
        if live is not None and live.final is not None:
            return live.final
        return await self.get_job(job_id)

    async def delete(self, job_id: JobId) -> None:
        """Remove a finished job and all that belongs to it. Raises NotFoundError, ConflictError."""
        head = await self._access.call(self._store.head, job_id)
        if head is None:
            raise NotFoundError(f"there is no job {job_id}")
        if not head.is_final or job_id in self._live:
            raise ConflictError(f"job {job_id} is not finished; cancel it first")
        artifacts = await self._access.call(self._store.artifacts_of, [job_id])

        def deleted() -> None:  # whether or not the client still waits
            self._services.artifacts.doubt(artifacts)
            self._tell_of_end()

        await self._writer.post(DeleteJobs([job_id]), refusable=True, on_commit=deleted).wait()

    # looking at jobs

    def follow(self, job_id: JobId, *, after_seq: int = 0) -> AbstractAsyncContextManager[Follower]:
        """Follow a job's events. Raises NotFoundError and GoneError on entering."""
        return self._events.follow(job_id, after_seq=after_seq)

    async def get_job(self, job_id: JobId) -> Job:
        """The job as it is stored, with input and, when it is finished, result. Raises NotFoundError."""
        return await self._access.call(read_job, self._store, job_id)

    async def list_jobs(self, wanted: JobFilter) -> tuple[list[Job], int | None]:
        """Jobs without input, result and steps, newest first; and what to pass as `before` for the next page."""
        found = await self._access.call(self._store.list_jobs, wanted)
        jobs = [from_stored_json(summary.job, Job) for summary in found]
        return jobs, found[-1].number if len(found) == wanted.limit else None

    async def checkpoints(self, job_id: JobId) -> list[msgspec.Raw]:
        """The StepCheckpoints of a job, as JSON. Raises NotFoundError."""
        return await self._access.call(read_checkpoints, self._store, job_id)


def input_size(job: Job) -> int:
    """About how many bytes the sources of a job hold."""
    sources = job.input.sources if job.input is not None else ()
    return sum(len(source.content) + len(source.content_base64 or "") for source in sources)
