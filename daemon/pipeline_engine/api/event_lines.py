"""The events as the OpenAPI document describes them: one schema for each name, so that `event` tells what `data` is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pipeline_engine.events import EventName
from pipeline_engine.models import Job, JobError, JobId, JobStatus, ResultItem, StepExecution, StepId, Wire

JsonObject = dict[str, Any]

EVENT = "Event"
EVENT_LINE = "EventLine"


class Resumption(msgspec.Struct, kw_only=True):
    """After a restart of the daemon: how often it was restarted under the job, and where the steps stand."""

    restarts: int
    steps: list[StepExecution]


class Progress(Wire, kw_only=True):
    """How many items of a step are done. `note` tells that a model is being loaded."""

    step_id: StepId
    done: int
    total: Annotated[int, Meta(description="Null until it is known.")] | None
    note: str | None = None


class ItemStart(Wire, kw_only=True):
    """An attempt at an item begins."""

    step_id: StepId
    shard_key: str | None = None
    attempt: int


class Chunk(Wire, kw_only=True):
    """A piece of an answer as the provider sent it. A new attempt voids the chunks of the one before."""

    step_id: StepId
    shard_key: str | None = None
    attempt: int
    index: Annotated[int, Meta(description="From 0 for each step, shard and attempt.")]
    content: str
    kind: Literal["text", "reasoning"]


class Retrial(Wire, kw_only=True):
    """An attempt failed, and another comes."""

    step_id: StepId
    shard_key: str | None = None
    attempt: Annotated[int, Meta(description="The one to come.")]
    delay_s: Annotated[float, Meta(description="Seconds until it begins.")]
    error: JobError


class ResumeToken(msgspec.Struct, kw_only=True):
    job_id: JobId
    seq: int


class StreamEnd(msgspec.Struct, kw_only=True):
    """The job is over, and nothing follows."""

    status: JobStatus
    resume_token: ResumeToken


class StreamFailure(msgspec.Struct, kw_only=True):
    """The stream itself broke; the job goes on. Ask again with after_seq."""

    code: str
    message: str


class Nothing(msgspec.Struct):
    pass


#: What `data` is, for each event that is stored and numbered.
STORED = {
    EventName.JOB_QUEUED: Job,
    EventName.JOB_STARTED: Job,
    EventName.JOB_RESUMED: Resumption,
    EventName.JOB_STATUS: Job,
    EventName.STEP_STARTED: StepExecution,
    EventName.STEP_PROGRESS: Progress,
    EventName.ITEM_STARTED: ItemStart,
    EventName.PROVIDER_CHUNK: Chunk,
    EventName.STEP_RETRYING: Retrial,
    EventName.ITEM_COMPLETED: ResultItem,
    EventName.STEP_COMPLETED: StepExecution,
    EventName.STEP_FAILED: StepExecution,
    EventName.STEP_CANCELLED: StepExecution,
    EventName.STEP_SKIPPED: StepExecution,
    EventName.JOB_COMPLETED: Job,
    EventName.JOB_FAILED: Job,
    EventName.JOB_CANCELLED: Job,
    EventName.STREAM_FINISHED: StreamEnd,
}
#: And for those that come in a stream only, without a seq.
UNNUMBERED = {"heartbeat": Nothing, "error": StreamFailure}

DATA_TYPES = tuple(dict.fromkeys([*STORED.values(), *UNNUMBERED.values()]))


def event_schemas(ref_template: str) -> dict[str, JsonObject]:
    """The components: one for each event, the choice of those that are stored, and that of the lines of a stream."""
    stored = {name: _schema_name(name) for name in STORED}
    unnumbered = {name: _schema_name(name) for name in UNNUMBERED}
    events = {
        _schema_name(name): _event_schema(name, ref_template.format(name=type_.__name__), numbered=name in STORED)
        for name, type_ in (STORED | UNNUMBERED).items()
    }
    return {
        EVENT: _choice(stored, ref_template, "A stored event of a job; `event` tells what `data` is."),
        EVENT_LINE: _choice(
            stored | unnumbered,
            ref_template,
            "One line of a stream: an event, or a heartbeat or an error of the stream itself, which have no seq.",
        ),
        **events,
    }


def _schema_name(event: str) -> str:
    return "".join(word.capitalize() for word in event.split("_")) + "Event"


def _event_schema(event: str, data: str, *, numbered: bool) -> JsonObject:
    seq = {"seq": {"type": "integer", "minimum": 1, "description": "From 1 in each job, without a gap."}}
    properties = {
        **(seq if numbered else {}),
        "event": {"type": "string", "const": event},
        "job_id": {"type": "string"},
        "ts": {"type": "string", "format": "date-time", "description": "UTC, with six digits of fraction."},
        "data": {"$ref": data},
    }
    return {"title": _schema_name(event), "type": "object", "properties": properties, "required": list(properties)}


def _choice(names: dict[str, str], ref_template: str, description: str) -> JsonObject:
    mapping = {event: ref_template.format(name=schema) for event, schema in names.items()}
    return {
        "description": description,
        "oneOf": [{"$ref": reference} for reference in mapping.values()],
        "discriminator": {"propertyName": "event", "mapping": mapping},
    }
