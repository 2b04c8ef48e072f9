"""Runs one job's DAG in one nursery: each step is started when the last of its dependencies is done."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from textwrap import shorten

import trio

from pipeline_engine.errors import ErrorCode, StepError
from pipeline_engine.events import Event, EventName
from pipeline_engine.models import (
    ErrorPolicy,
    JobError,
    JobResult,
    ResultItem,
    StepDef,
    StepExecution,
    StepId,
    StepStatus,
    now_rfc3339,
)
from pipeline_engine.steps.context import JobContext, job_error
from pipeline_engine.steps.runner import run_step
from pipeline_engine.store.base import ExecutionRecord
from pipeline_engine.tracing import Start

log = logging.getLogger(__name__)

JOB_FAILED_FIRST = "the job failed before it began"

_END_EVENTS = {
    StepStatus.SUCCESS: EventName.STEP_COMPLETED,
    StepStatus.FAILED: EventName.STEP_FAILED,
    StepStatus.SKIPPED: EventName.STEP_SKIPPED,
    StepStatus.CANCELLED: EventName.STEP_CANCELLED,
}


class JobFailedError(Exception):
    """A step whose on_error is `fail` has failed: the job ends with this error."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message)
        self.error = error


class Scheduler:
    """Runs the steps of one job.

    Each step moves once from pending through running to a final status, and each of these is an event. A step is
    looked at when all its dependencies are final; it then runs, or is skipped.
    """

    def __init__(self, context: JobContext) -> None:
        self._context = context
        self._graph = context.graph
        self._waiting = {step_id: len(dependencies) for step_id, dependencies in self._graph.dependencies.items()}

    async def run(self) -> JobError | None:
        """Run what is not final yet; the answer is the error of the step that failed the job, if one did."""
        error: JobError | None = None
        try:
            async with trio.open_nursery() as steps:
                await self._run_all(steps, [step_id for step_id, count in self._waiting.items() if count == 0])
        except* JobFailedError as failures:
            error = _first_failure(failures)
        return error

    async def _run_all(self, steps: trio.Nursery, ready: Sequence[StepId]) -> None:
        """Run the steps that are ready and all that follows from them: a chain in this task, branches in their own."""
        while runnable := self._advance(ready):
            if len(runnable) > 1:
                for step in runnable:
                    steps.start_soon(self._run_branch, steps, step)
                return
            if ready := await self._run_step(runnable[0]):
                await trio.lowlevel.checkpoint()  # a chain of steps that wait for nothing must not hold up all others

    async def _run_branch(self, steps: trio.Nursery, step: StepDef) -> None:
        await self._run_all(steps, await self._run_step(step))

    # what to do with a step whose dependencies are final

    def _advance(self, ready: Sequence[StepId]) -> list[StepDef]:
        """The steps to run, of those that became ready; others are skipped, and what becomes ready thereby counts too."""
        runnable: list[StepDef] = []
        queue = deque(ready)
        while queue:
            step_id = queue.popleft()
            execution = self._context.executions[step_id]
            if execution.status.is_final:
                self._take_over(step_id)
            elif execution.reused_from is not None:
                self._reuse(step_id)
            elif (reason := self._lacks_input(step_id)) is not None:
                self._end_step(step_id, StepStatus.SKIPPED, reason=reason)
                self._context.finish_items(step_id, ())
            else:
                runnable.append(self._graph.steps[step_id])
                continue
            queue += self._unblocked(step_id)
        return runnable

    def _unblocked(self, step_id: StepId) -> list[StepId]:
        ready = []
        for dependent in self._graph.dependents[step_id]:
            self._waiting[dependent] -= 1
            if self._waiting[dependent] == 0:
                ready.append(dependent)
        return ready

    def _lacks_input(self, step_id: StepId) -> str | None:
        """Which dependency failed, or was skipped without its items being reused from another job; None if none."""
        step = self._graph.steps[step_id]
        for dependency in self._graph.dependencies[step_id]:
            execution = self._context.executions[dependency]
            skipped = execution.status is StepStatus.SKIPPED and execution.reused_from is None
            if execution.status is StepStatus.FAILED:
                return f"it needs {dependency}, which failed"
            if skipped and not step.run_if_skipped:
                return f"it needs {dependency}, which was skipped"
        return None

    def _take_over(self, step_id: StepId) -> None:
        """The step ended before a restart of the daemon: its items are in the checkpoints."""
        execution = self._context.executions[step_id]
        if execution.status is StepStatus.SUCCESS or execution.reused_from is not None:
            self._context.finish_items(step_id, self._context.items_before(step_id))
            return
        self._context.finish_items(step_id, ())
        if execution.error is not None and self._fails_job(self._graph.steps[step_id], execution.error):
            raise JobFailedError(execution.error)

    def _reuse(self, step_id: StepId) -> None:
        """The step succeeded in the parent job: it counts as done, and its items stand again in the result."""
        items = self._context.items_before(step_id)
        execution = self._context.executions[step_id]
        execution.items_total = execution.items_done = len(items)
        self._context.finish_items(step_id, items)
        events = [(EventName.ITEM_COMPLETED, item) for item in items] if self._graph.steps[step_id].export else []
        self._end_step(step_id, StepStatus.SKIPPED, before=events)

    # running

    async def _run_step(self, step: StepDef) -> list[StepId]:
        """Take the step to its end; gives the steps that become ready thereby."""
        execution = self._context.executions[step.id]
        try:
            if execution.status is StepStatus.PENDING:
                if not await self._wanted(step):
                    self._context.finish_items(step.id, ())
                    self._end_step(
                        step.id, StepStatus.SKIPPED, reason=f"when is false: {shorten(step.when or '', 200)}"
                    )
                    return self._unblocked(step.id)
                # What was stored of a cancellation must not be written over by a step that begins after it.
                await trio.lowlevel.checkpoint_if_cancelled()
                self._begin_step(step)
            items = await self._items_of(step)
        except StepError as exc:
            self._fail_step(step, job_error(exc, step_id=step.id))
        except Exception as exc:
            job_id = self._context.job.id
            log.exception("internal error in job %s, step %s", job_id, step.id)
            words = f"internal error ({type(exc).__name__}); the daemon's log has more under job {job_id}"
            self._fail_step(step, job_error(StepError(ErrorCode.INTERNAL, words), step_id=step.id))
        else:
            self._context.finish_items(step.id, items)
            self._end_step(step.id, StepStatus.SUCCESS)
        return self._unblocked(step.id)

    async def _items_of(self, step: StepDef) -> list[ResultItem]:
        services = self._context.services
        services.step_stats.running += 1
        try:
            with services.tracer.span(lambda: _describe(step)) as span:
                items = await run_step(self._context, step)
                span.add(lambda: {"pipeline_engine.step.items": len(items)})
                return items
        finally:
            services.step_stats.running -= 1

    async def _wanted(self, step: StepDef) -> bool:
        if step.when is None:
            return True
        try:
            return bool(await self._context.services.renderer.evaluate(step.when, self._context.scope(step)))
        except StepError as exc:
            raise StepError(ErrorCode(exc.code), f"when: {exc.message}", details=exc.details) from exc

    def _begin_step(self, step: StepDef) -> None:
        execution = self._context.executions[step.id]
        execution.status = StepStatus.RUNNING
        execution.started_at = now_rfc3339()
        self._context.step_deadline(step)  # its time counts from now on, restarts included
        self._context.log.post(
            [(EventName.STEP_STARTED, execution)],
            executions=[self._context.execution_record(step.id)],
            state=self._context.state(),
        )

    def _fail_step(self, step: StepDef, error: JobError) -> None:
        """Raises JobFailedError unless the job may go on without the step."""
        self._context.executions[step.id].error = error
        self._context.finish_items(step.id, ())
        self._end_step(step.id, StepStatus.FAILED)
        if self._fails_job(step, error):
            raise JobFailedError(error)

    @staticmethod
    def _fails_job(step: StepDef, error: JobError) -> bool:
        return step.on_error is not ErrorPolicy.CONTINUE or error.code == ErrorCode.BUDGET_EXCEEDED

    # ends

    def _end_step(
        self, step_id: StepId, status: StepStatus, *, before: Sequence[Event] = (), reason: str | None = None
    ) -> None:
        event, record = self._ended(step_id, status, reason=reason)
        self._context.log.post([*before, event], executions=[record])

    def end_unfinished(self, *, pending: StepStatus) -> tuple[list[Event], list[ExecutionRecord]]:
        """The job is over: steps that run are cancelled, those that wait get the status `pending`.

        The answer belongs into the append that ends the job, so that a crash cannot come in between.
        """
        events: list[Event] = []
        records: list[ExecutionRecord] = []
        for step_id, execution in self._context.executions.items():
            if not execution.status.is_final:
                status = StepStatus.CANCELLED if execution.status is StepStatus.RUNNING else pending
                is_skipped = status is StepStatus.SKIPPED
                event, record = self._ended(step_id, status, reason=JOB_FAILED_FIRST if is_skipped else None)
                events.append(event)
                records.append(record)
        return events, records

    def _ended(self, step_id: StepId, status: StepStatus, *, reason: str | None) -> tuple[Event, ExecutionRecord]:
        """The step has come to its final status; `reason` says why it was skipped."""
        execution = self._context.executions[step_id]
        execution.status = status
        self._context.services.step_stats.ended[status] += 1
        execution.reason = reason
        execution.finished_at = max(now_rfc3339(), execution.started_at or "")  # the wall clock may have been set back
        return (_END_EVENTS[status], execution), self._context.execution_record(step_id)


def new_executions(steps: Sequence[StepDef]) -> dict[StepId, StepExecution]:
    return {
        step.id: StepExecution(step_id=step.id, name=step.title, status=StepStatus.PENDING, attempts=0, items_done=0)
        for step in steps
    }


def collect_result(context: JobContext) -> JobResult:
    """The exported items in the order of the definition's steps, then of the shards."""
    items = [item for step in context.graph.definition.steps if step.export for item in context.items.get(step.id, ())]
    return JobResult(items=items, meta={"duration_s": round(context.ran_s, 6)})


def _describe(step: StepDef) -> Start:
    attributes = {
        "pipeline_engine.step.id": step.id,
        "pipeline_engine.step.kind": step.kind.value,
        "pipeline_engine.step.mode": step.mode.value,
    }
    return Start(f"step {step.id}", attributes)


def _first_failure(failures: BaseExceptionGroup[JobFailedError]) -> JobError:
    """Of the steps that failed at the same moment, the one that was raised first."""
    for failure in failures.exceptions:
        if isinstance(failure, BaseExceptionGroup):
            return _first_failure(failure)
        return failure.error
    raise AssertionError("an exception group is never empty")
