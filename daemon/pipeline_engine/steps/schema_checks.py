"""Checking JSON values against a JSON Schema for the event loop: light checks on it, the rest in processes."""

from __future__ import annotations

import trio

from pipeline_engine.steps.schema_work import is_light
from pipeline_engine.steps.schemas import Schema, validate
from pipeline_engine.worker_processes import WorkerError, WorkerProcesses, WorkerStartError


async def find_faults(value: object, schema: Schema, *, processes: WorkerProcesses) -> list[str]:
    """What is wrong with the value, as `validate` says it, without holding up the event loop.

    Schemas come from anybody, and their work has no bound: a check that takes more than one may is a fault of the
    value. Raises WorkerStartError.
    """
    await trio.lowlevel.checkpoint()
    if is_light(value, schema):
        return validate(value, schema)
    request = {"work": "validate", "value": value, "schema": schema}
    try:
        outcome = await processes.ask(request, purpose="the check")
    except WorkerStartError:
        raise
    except WorkerError as exc:
        return [f"$: {exc.message}"]
    faults: list[str] = outcome["value"]
    return faults
