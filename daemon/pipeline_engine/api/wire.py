"""The bodies and queries that only the API has; the domain's own types are in models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pipeline_engine.models import FrozenWire, Job, JobStatus, PipelineDef, ProviderKind, StepCheckpoint, Usage, Wire

MAX_SEQ = 2**53 - 1  # what every JSON reader holds exactly
MAX_WAIT_S = 60

AfterSeq = Annotated[int, Meta(ge=0, le=MAX_SEQ, description="Only events with a greater seq.")]


# --- queries


class SubmitQuery(FrozenWire, frozen=True, kw_only=True):
    stream: Annotated[bool, Meta(description="Answer with the job's events instead of the job.")] = False


class JobQuery(FrozenWire, frozen=True, kw_only=True):
    include: Annotated[list[Literal["chunks", "input"]], Meta(description="What to add to the job.")] = []


class JobsQuery(FrozenWire, frozen=True, kw_only=True):
    status: JobStatus | None = None
    pipeline_type: str | None = None
    label: Annotated[list[str], Meta(description="`key:value`; a job must have all that are given.")] = []
    limit: Annotated[int, Meta(ge=1, le=500)] = 50
    cursor: Annotated[str, Meta(description="The next_cursor of the page before.")] | None = None


class StreamQuery(FrozenWire, frozen=True, kw_only=True):
    after_seq: AfterSeq = 0


class EventsQuery(FrozenWire, frozen=True, kw_only=True):
    after_seq: AfterSeq = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 500
    wait_s: Annotated[float, Meta(ge=0, le=MAX_WAIT_S, description="How long to wait for the first event.")] = 0.0


class GraphQuery(FrozenWire, frozen=True, kw_only=True):
    format: Literal["mermaid", "dot"] = "mermaid"


# --- bodies of requests


class CancelRequest(FrozenWire, frozen=True, kw_only=True):
    reason: str = ""


class EngineSettingsRequest(FrozenWire, frozen=True, kw_only=True):
    log_level: str | None = None


# --- bodies of answers


class Index(msgspec.Struct, kw_only=True):
    name: str
    version: str
    links: dict[str, str]


class Health(msgspec.Struct, kw_only=True):
    status: Literal["ok"] = "ok"
    version: str
    uptime_sec: float


class Readiness(msgspec.Struct, kw_only=True):
    status: Literal["ready"] = "ready"


class JobAnswer(msgspec.Struct):
    job: Job


class JobList(msgspec.Struct):
    jobs: list[Job]
    next_cursor: str | None


class CheckpointList(msgspec.Struct):
    checkpoints: list[StepCheckpoint]


class EventsPage(msgspec.Struct):
    events: list[dict[str, Any]]
    last_seq: int


class Artifact(msgspec.Struct, kw_only=True):
    """A stored file."""

    id: str
    url: str
    mime_type: str
    bytes: int
    sha256: str


class ToolCall(msgspec.Struct, kw_only=True):
    """What the model wants to have called."""

    id: str
    name: str
    arguments: Any


class ItemData(Wire, kw_only=True):
    """The data of an item: the keys that apply."""

    text: str
    json: Any = None
    prompt: str | None = None
    provider: str | None = None
    model: str | None = None
    usage: Usage | None = None
    finish_reason: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None
    latency_ms: int | None = None
    warnings: list[dict[str, Any]] | None = None
    artifact: Artifact | None = None
    artifacts: list[Artifact] | None = None
    embedding: list[float] | None = None
    dimensions: int | None = None


class ProviderView(msgspec.Struct, kw_only=True):
    """A profile as anybody may see it: `extra` has the names of its headers, and `***` for their values."""

    id: str
    kind: ProviderKind
    base_uri: str
    api_key_set: bool
    default_model: str
    extra: dict[str, Any]


class ProviderList(msgspec.Struct):
    providers: list[ProviderView]


class PipelineList(msgspec.Struct):
    pipelines: list[PipelineDef]
    broken_files: list[str]


class ValidationProblem(msgspec.Struct, kw_only=True):
    path: str
    message: str


class Validation(msgspec.Struct):
    valid: bool
    errors: list[ValidationProblem]


class ProviderMetrics(msgspec.Struct, kw_only=True):
    """Each kind of provider, and how many; latency is the total in milliseconds."""

    provider_call_count: dict[str, int]
    provider_call_latency: dict[str, int]
    provider_call_errors: dict[str, int]
    provider_chunk_count: dict[str, int]


class ErrorBody(msgspec.Struct, kw_only=True):
    code: str
    message: str
    details: dict[str, Any]


class ErrorAnswer(msgspec.Struct):
    error: ErrorBody
