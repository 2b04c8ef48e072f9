"""One step: its shards, its items at the step's concurrency, its deadline, and what it shows while it runs."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import trio

from pipeline_engine.errors import ErrorCode, StepError
from pipeline_engine.events import EventName
from pipeline_engine.models import (
    ItemErrorPolicy,
    OutputType,
    ResultItem,
    SplitBy,
    StepDef,
    StepExecution,
    StepKind,
    StepMode,
)
from pipeline_engine.steps.context import JobContext, artifact_ids, job_error
from pipeline_engine.steps.items import ItemMaker
from pipeline_engine.steps.run_time import run_time_noted
from pipeline_engine.steps.shards import Shard, make_shards
from pipeline_engine.tracing import NO_TRACER, Start

log = logging.getLogger(__name__)

INLINE_CHARS = 65_536  # sources up to this size are cut on the event loop
TRANSFORM_TURN = 0.002  # seconds for which a step of transforms keeps the loop to itself
PROGRESS_INTERVAL = 0.1  # seconds between two step_progress events; the last one always comes
DEFAULT_BATCH = 64  # shards in one embedding request


async def run_step(context: JobContext, step: StepDef) -> list[ResultItem]:
    """The items of the step, in the order of its shards. Raises StepError; details hold the step and the shard."""
    if step.timeout_s is None:
        return await StepRun(context, step).run()
    with trio.CancelScope(deadline=context.step_deadline(step)):
        async with run_time_noted(context, step.timeout_s):
            return await StepRun(context, step).run()
    words = f"step {step.id!r} took longer than its timeout_s of {step.timeout_s:g} s"
    raise StepError(ErrorCode.TIMEOUT, words, details={"step_id": step.id})


class StepRun:
    """The state of one run of a step."""

    def __init__(self, context: JobContext, step: StepDef) -> None:
        self._context = context
        self._step = step
        self._execution: StepExecution = context.executions[step.id]
        self._items: list[ResultItem | None] = []
        # An operation of ours, which takes less time than a note that it gave no item.
        self._is_transform = step.kind in (StepKind.MAP, StepKind.REDUCE) and step.provider_profile_id is None
        self._failure: StepError | None = None
        self._progress_due = trio.current_time() + PROGRESS_INTERVAL
        self._shown_done: int | None = None

    async def run(self) -> list[ResultItem]:
        step, context = self._step, self._context
        dry_run = context.job.dry_run
        shards = await self._cut(dry_run=dry_run)
        maker = ItemMaker(context, step, dry_run=dry_run)
        todo = self._begin(shards)
        if step.mode is StepMode.SINGLE:
            for shard in todo:
                await self._make(maker, [shard])
            if not context.log.has_room:
                await context.log.wait_for_room()
        else:
            await self._make_all(maker, todo)
            self._show_progress(last=True)
        if self._failure is not None:
            raise self._failure
        return [item for item in self._items if item is not None]

    async def _cut(self, *, dry_run: bool) -> list[Shard]:
        """The shards; cutting large sources, or by a pattern, takes a worker thread."""
        cut = functools.partial(make_shards, self._context, self._step, dry_run=dry_run)
        split = self._step.config.split
        size = sum(len(view["content"]) for view in self._context.source_views)
        if split is None or (split.by is not SplitBy.REGEX and size <= INLINE_CHARS):
            return cut()
        return await trio.to_thread.run_sync(cut, abandon_on_cancel=True, limiter=self._context.services.workers)

    def _begin(self, shards: Sequence[Shard]) -> list[Shard]:
        """Take over what a restart or a rerun left of the items; gives the shards whose items are to be made."""
        context, step, execution = self._context, self._step, self._execution
        before = context.checkpoints(step.id)
        points = [before.get(shard.key) for shard in shards]
        todo = [shard for shard, placed in zip(shards, points, strict=True) if placed is None]
        self._items = [None if placed is None else placed[1].result for placed in points]
        execution.errors = [placed[1].error for placed in points if placed is not None and placed[1].error is not None]
        is_first_run = execution.items_total is None
        execution.items_total = len(shards)
        execution.items_done = len(shards) - len(todo)
        if before:
            # Items of a rerun's parent: after this, only a checkpoint would tell of them.
            taken = [item for item in self._items if item is not None] if is_first_run and step.export else []
            # What is of no shard, as those of a dry run, must not come back after a restart either.
            keys = {shard.key for shard in shards}
            dropped = [
                context.left_out_record(step.id, key, index)
                for key, (index, point) in before.items()
                if key not in keys and point.result is not None
            ]
            if taken or dropped:
                context.log.post(
                    [(EventName.ITEM_COMPLETED, item) for item in taken],
                    executions=[context.progress_record(step.id)],
                    checkpoints=dropped,
                )
        return todo

    async def _make_all(self, maker: ItemMaker, shards: Sequence[Shard]) -> None:
        """One task an item, no more at a time than the step allows; the next is started when one is done."""
        if self._is_transform:
            await self._transform_all(maker, shards)
            return
        room = trio.Semaphore(self._step.max_concurrency)

        async def make(batch: Sequence[Shard]) -> None:
            try:
                await self._make(maker, batch)
                # A step that never waits would otherwise starve the others, and outrun the store.
                await self._context.log.wait_for_room()
            finally:
                room.release()
            if self._failure is not None:
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for batch in self._batches(shards):
                await room.acquire()
                nursery.start_soon(make, batch)

    async def _transform_all(self, maker: ItemMaker, shards: Sequence[Shard]) -> None:
        """Transforms of ours wait for nothing: a task, or only a turn of the loop, for each would cost more than they."""
        turn_ends = trio.current_time() + TRANSFORM_TURN
        for shard in shards:
            await self._make(maker, [shard], traced=False)  # of thousands of lines each would have its span
            if self._failure is not None:
                return
            if trio.current_time() >= turn_ends:
                await self._context.log.wait_for_room()
                turn_ends = trio.current_time() + TRANSFORM_TURN

    def _batches(self, shards: Sequence[Shard]) -> Iterator[Sequence[Shard]]:
        size = batch_size(self._step)
        for start in range(0, len(shards), size):
            yield shards[start : start + size]

    async def _make(self, maker: ItemMaker, batch: Sequence[Shard], *, traced: bool = True) -> None:
        tracer = self._context.services.tracer if traced else NO_TRACER
        try:
            with tracer.span(lambda: _describe(self._step, batch)):
                items = await maker.make(batch)
        except StepError as exc:
            # Not only servers and tools repeat what they know: handlers do so too.
            self._context.services.redactor.redact_error(exc)
            self._items_failed(exc, batch)
        except Exception as exc:
            log.exception("internal error in job %s, step %s", self._context.job.id, self._step.id)
            words = f"internal error ({type(exc).__name__}); the daemon's log has more under job {self._context.job.id}"
            self._items_failed(StepError(ErrorCode.INTERNAL, words), batch)
        else:
            self._items_done(batch, items)

    def _items_done(self, batch: Sequence[Shard], items: Sequence[ResultItem | None]) -> None:
        context = self._context
        events = []
        checkpoints = []
        artifacts: list[str] = []
        for shard, item in zip(batch, items, strict=True):
            self._execution.items_done += 1
            if item is None:
                if not self._is_transform:
                    checkpoints.append(context.left_out_record(self._step.id, shard.key, shard.index))
                continue
            self._items[shard.index] = item
            checkpoints.append(context.checkpoint_record(item, shard.index))
            artifacts += artifact_ids(item)
            if self._step.export:
                events.append((EventName.ITEM_COMPLETED, item))
        # With the items goes what they have cost, so that a crash loses neither.
        progress = [context.progress_record(self._step.id)]
        context.log.post(events, executions=progress, checkpoints=checkpoints, artifacts=artifacts)
        self._show_progress()

    def _items_failed(self, exc: StepError, batch: Sequence[Shard]) -> None:
        context, step = self._context, self._step
        errors = [job_error(exc, step_id=step.id, shard_key=shard.key) for shard in batch]
        sharded = step.mode is not StepMode.SINGLE
        if sharded:
            self._execution.errors = [*self._execution.errors, *errors]
        # A budget is the job's: leaving out items would hide that it is spent.
        skippable = sharded and step.on_item_error is ItemErrorPolicy.SKIP
        if skippable and exc.code is not ErrorCode.BUDGET_EXCEEDED:
            self._execution.items_done += len(batch)
            if not self._is_transform:
                left_out = [
                    context.left_out_record(step.id, shard.key, shard.index, error=error)
                    for shard, error in zip(batch, errors, strict=True)
                ]
                context.log.post(executions=[context.progress_record(step.id)], checkpoints=left_out)
            self._show_progress()
        elif self._failure is None:
            self._failure = StepError(exc.code, exc.message, details=errors[0].details)

    def _show_progress(self, *, last: bool = False) -> None:
        if self._step.mode is StepMode.SINGLE:
            return
        now = trio.current_time()
        execution = self._execution
        if execution.items_done == self._shown_done or (not last and now < self._progress_due):
            return
        self._progress_due = now + PROGRESS_INTERVAL
        self._shown_done = execution.items_done
        data: dict[str, Any] = {
            "step_id": self._step.id,
            "done": execution.items_done,
            "total": execution.items_total,
        }
        self._context.log.post([(EventName.STEP_PROGRESS, data)])


def _describe(step: StepDef, batch: Sequence[Shard]) -> Start:
    keys = [shard.key for shard in batch if shard.key is not None]
    shown = {"pipeline_engine.item.shard_keys": keys} if keys else {}
    return Start(f"item {step.id}", {"pipeline_engine.step.id": step.id, **shown})


def batch_size(step: StepDef) -> int:
    """How many shards go into one provider call."""
    return (step.config.batch_size or DEFAULT_BATCH) if step.output_type is OutputType.EMBEDDING else 1
