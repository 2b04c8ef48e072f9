"""Puts jobs together from what the store has of them."""

from __future__ import annotations

import msgspec

from pipeline_engine.decoding import from_stored_json
from pipeline_engine.errors import NotFoundError
from pipeline_engine.models import Job, JobId, JobInput, PipelineDef, StepExecution
from pipeline_engine.scheduler import new_executions
from pipeline_engine.store.base import JobRecord, Store


def read_job(store: Store, job_id: JobId) -> Job:
    """The job with input and steps and, when it is finished, result. Raises NotFoundError."""
    record = store.get_job(job_id)
    if record is None:
        raise no_job(job_id)
    job = _read_final(store, record) if record.status.is_final else _read_unfinished(record)
    job.input = read_input(store, job_id)
    job.last_seq = record.last_seq
    return job


def read_input(store: Store, job_id: JobId) -> JobInput:
    """The input of a job: its first event has it. Raises NotFoundError.

    Whoever reads several things of a job reads this last: it fails if the job was deleted in between.
    """
    events = store.read_events(job_id, limit=1)
    if not events:
        raise no_job(job_id)
    return from_stored_json(events[0].line, _JobLine).data.input or JobInput()


def read_checkpoints(store: Store, job_id: JobId) -> list[msgspec.Raw]:
    """The StepCheckpoints of a job, as JSON, without what the store notes of items that were left out.

    Raises NotFoundError.
    """
    if store.head(job_id) is None:
        raise no_job(job_id)
    stored = [point.checkpoint for point in store.read_checkpoints(job_id)]
    return [msgspec.Raw(text) for text in stored if from_stored_json(text, _ResultOnly).result]


def no_job(job_id: JobId) -> NotFoundError:
    return NotFoundError(f"there is no job {job_id}")


def _read_final(store: Store, record: JobRecord) -> Job:
    """A finished job with its result and steps: its terminal event, the last but one, has them."""
    events = store.read_events(record.job_id, after_seq=record.last_seq - 2, limit=1)
    if not events:
        raise no_job(record.job_id)
    return from_stored_json(events[0].line, _JobLine).data


def _read_unfinished(record: JobRecord) -> Job:
    job = from_stored_json(record.job, Job)
    definition = from_stored_json(record.definition, PipelineDef)
    executions = new_executions(definition.steps)
    for text in record.executions:
        execution = from_stored_json(text, StepExecution)
        executions[execution.step_id] = execution
    job.step_executions = list(executions.values())
    return job


class _JobLine(msgspec.Struct):
    """The event whose data is a job."""

    data: Job


class _ResultOnly(msgspec.Struct):
    """A checkpoint of which only whether it has a result is of interest: the result is not decoded."""

    result: msgspec.Raw = msgspec.Raw()
