"""What a rerun takes over from its parent job: whole steps, and finished items of the others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec

from pipeline_engine.decoding import from_stored_json, to_json
from pipeline_engine.errors import InvalidRequestError, Problem
from pipeline_engine.models import (
    Job,
    JobId,
    JobInput,
    PipelineDef,
    RerunRequest,
    ResultItem,
    StepDef,
    StepExecution,
    StepId,
    StepMode,
    StepStatus,
    StoredCheckpoint,
)
from pipeline_engine.pipeline import Graph, input_step
from pipeline_engine.scheduler import new_executions
from pipeline_engine.steps.context import PlacedCheckpoint, artifact_ids
from pipeline_engine.steps.shards import takes_images
from pipeline_engine.store.base import CheckpointRecord, ExecutionRecord, JobRecord, Store
from pipeline_engine.stored_jobs import no_job, read_input


@dataclass(frozen=True, slots=True)
class Parent:
    """A job that is run again, as far as it has come."""

    record: JobRecord
    job: Job
    definition: PipelineDef
    job_input: JobInput
    executions: dict[StepId, StepExecution]
    checkpoints: Sequence[PlacedCheckpoint]


@dataclass(frozen=True, slots=True)
class RerunPlan:
    """What is written with the new job, so that it keeps its own copies."""

    executions: Sequence[ExecutionRecord]
    checkpoints: Sequence[CheckpointRecord]
    artifacts: Sequence[str]


def read_parent(store: Store, job_id: JobId) -> Parent:
    """Raises NotFoundError. Blocks."""
    record = store.get_job(job_id)
    if record is None:
        raise no_job(job_id)
    checkpoints = [
        (stored.index, from_stored_json(stored.checkpoint, StoredCheckpoint))
        for stored in store.read_checkpoints(job_id)
    ]
    executions = [from_stored_json(text, StepExecution) for text in record.executions]
    return Parent(
        record=record,
        job=from_stored_json(record.job, Job),
        definition=from_stored_json(record.definition, PipelineDef),
        job_input=read_input(store, job_id),
        executions={execution.step_id: execution for execution in executions},
        checkpoints=checkpoints,
    )


def plan_rerun(parent: Parent, definition: PipelineDef, request: RerunRequest, *, job_id: JobId) -> RerunPlan:
    """What the new job need not do again. Raises InvalidRequestError for an unknown step.

    With reuse_upstream, a step that succeeded in the parent is reused whole unless it is `from_step_id` or downstream
    of it; of the other steps that are not downstream, the finished items are, as long as the input is the parent's and
    the step works on the same shards.
    """
    graph = Graph(definition)
    again: set[StepId] = set()
    if request.from_step_id is not None:
        if request.from_step_id not in graph.steps:
            words = f"the pipeline has no step {request.from_step_id!r}; it has {', '.join(graph.steps)}"
            raise InvalidRequestError([Problem("from_step_id", words)])
        again = {request.from_step_id, *graph.downstream(request.from_step_id)}
    if not request.reuse_upstream:
        return RerunPlan((), (), ())
    kept = graph.steps.keys() - again
    whole = {step_id for step_id in kept if _succeeded(parent.executions.get(step_id))}
    partial: set[StepId] = set()
    if request.override_input is None:
        before = {step.id: step for step in parent.definition.steps}
        partial = {
            step_id for step_id in kept - whole if _same_shards(before.get(step_id), graph.steps[step_id], whole)
        }
    positions = {step_id: position for position, step_id in enumerate(graph.steps)}
    executions = []
    for step_id, execution in new_executions(definition.steps).items():
        if step_id in whole:
            execution.reused_from = parent.job.id
            executions.append(ExecutionRecord(positions[step_id], to_json(execution)))
    checkpoints = []
    artifacts: list[str] = []
    for index, point in parent.checkpoints:
        step_id = point.step_id
        if point.error is not None or not (step_id in whole or step_id in partial):
            continue  # what failed may succeed now
        copy = msgspec.structs.replace(point, job_id=job_id)
        if point.result is not None:
            copy.result = _copy(point.result, job_id, primary=graph.last_exported == step_id)
            artifacts += artifact_ids(copy.result)
        checkpoints.append(CheckpointRecord(positions[step_id], index, to_json(copy)))
    return RerunPlan(executions, checkpoints, artifacts)


def _succeeded(execution: StepExecution | None) -> bool:
    if execution is None:
        return False
    return execution.status is StepStatus.SUCCESS or execution.reused_from is not None


def _same_shards(before: StepDef | None, step: StepDef, whole: Collection[StepId]) -> bool:
    """Whether the items that the parent has of the step are of shards that it has again: keys alone do not tell."""
    return before is not None and _cut(before) == _cut(step) and all(step_id in whole for step_id in _inputs(step))


def _cut(step: StepDef) -> tuple[object, ...]:
    """What says which shards a step has of the same sources and items; an image is never cut for a step that takes it."""
    return step.mode, step.config.split, takes_images(step), _inputs(step)


def _inputs(step: StepDef) -> list[StepId]:
    """The steps whose items a step works on; none when it works on the sources."""
    if step.mode is StepMode.SINGLE:
        return step.depends_on
    origin = input_step(step)
    return [] if origin is None else [origin]


def _copy(item: ResultItem, job_id: JobId, *, primary: bool) -> ResultItem:
    """The item as one of the new job: artifacts are fetched by the job they belong to."""
    data = dict(item.data)
    if "artifact" in data:
        data["artifact"] = _owned(data["artifact"], job_id)
    if "artifacts" in data:
        data["artifacts"] = [_owned(artifact, job_id) for artifact in data["artifacts"]]
    return msgspec.structs.replace(item, is_primary=primary, data=data)


def _owned(artifact: dict[str, object], job_id: JobId) -> dict[str, object]:
    return artifact | {"url": f"/v1/jobs/{job_id}/artifacts/{artifact['sha256']}"}
