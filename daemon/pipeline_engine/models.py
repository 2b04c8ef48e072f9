"""The domain types: what requests, definitions, jobs and results consist of, as they stand on the wire.

A field without a default is always present in an answer; one with a default is left out while it has it. Times are
RFC 3339 texts in UTC with six digits of fraction; durations are seconds.
"""

from __future__ import annotations

import functools
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, NewType

import msgspec
from msgspec import Meta

from pipeline_engine.decoding import KEEP_EMPTY, Secret

JobId = NewType("JobId", str)
StepId = NewType("StepId", str)

PositiveSeconds = Annotated[float, Meta(gt=0)]
NonNegativeSeconds = Annotated[float, Meta(ge=0)]
PositiveInt = Annotated[int, Meta(ge=1)]


def now_rfc3339() -> str:
    """The wall-clock time, as `2026-01-31T09:00:00.000000Z`."""
    second, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{_whole_second(second)}.{nanoseconds // 1000:06d}Z"


@functools.lru_cache(maxsize=4)  # every event asks for the time; most of it is that of the event before
def _whole_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class ProviderKind(StrEnum):
    OPENAI = "openai"
    OLLAMA = "ollama"
    IMAGE = "image"
    LOCAL_TOOL = "local_tool"


class StepKind(StrEnum):
    LLM = "llm"
    IMAGE = "image"
    MAP = "map"
    REDUCE = "reduce"
    CUSTOM = "custom"


class StepMode(StrEnum):
    SINGLE = "single"
    FANOUT = "fanout"
    PER_ITEM = "per_item"


class OutputType(StrEnum):
    TEXT = "text"
    MARKDOWN = "markdown"
    JSON = "json"
    IMAGE = "image"
    EMBEDDING = "embedding"
    TABLE = "table"
    BINARY = "binary"


class OutputFormat(StrEnum):
    TEXT = "text"
    JSON_STRICT = "json_strict"
    JSON_LOOSE = "json_loose"


class ErrorPolicy(StrEnum):
    FAIL = "fail"
    CONTINUE = "continue"


class ItemErrorPolicy(StrEnum):
    FAIL = "fail"
    SKIP = "skip"


class SplitBy(StrEnum):
    LINES = "lines"
    CHARS = "chars"
    REGEX = "regex"
    JSONL = "jsonl"
    JSON_ARRAY = "json_array"
    CSV = "csv"


class MapOperation(StrEnum):
    IDENTITY = "identity"
    TEMPLATE = "template"
    SELECT = "select"
    FILTER = "filter"
    PARSE = "parse"
    REGEX = "regex"


class ParseFormat(StrEnum):
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    LOGFMT = "logfmt"


class ReduceOperation(StrEnum):
    CONCAT = "concat"
    COLLECT = "collect"
    MERGE = "merge"
    COUNT_BY = "count_by"
    TOP = "top"
    TEMPLATE = "template"


class JobMode(StrEnum):
    ASYNC = "async"
    SYNC = "sync"
    RERUN = "rerun"


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class StepStatus(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    SUCCESS = "success"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self not in (StepStatus.PENDING, StepStatus.RUNNING)


def _always(value: Any) -> Any:
    """A default that is written all the same, as clients of the v0.2 API count on the field.

    msgspec leaves out a default that it knows; one that a factory makes, other than an empty list or dict, it writes.
    """
    return msgspec.field(default_factory=lambda: value)


def _empty_list() -> list[Any]:
    return []


def _empty_dict() -> dict[str, Any]:
    return {}


class Wire(msgspec.Struct, omit_defaults=True):
    """The base of all wire types."""


class FrozenWire(msgspec.Struct, frozen=True, omit_defaults=True):
    """The base of wire types that do not change once they are made: requests and definitions."""


# --- provider profiles ------------------------------------------------------------------------------------------------


class ManagedServer(FrozenWire, frozen=True, kw_only=True):
    """A model server that the daemon starts on first use."""

    command: Annotated[list[str], Meta(min_length=1)]
    ready: str
    start_timeout_s: PositiveSeconds = 60.0
    idle_stop_s: PositiveSeconds = 300.0


class Sandbox(FrozenWire, frozen=True, kw_only=True):
    writable: list[str] = []


class ProviderSettings(FrozenWire, frozen=True, kw_only=True):
    """What a profile's `extra` and a step's `provider_override` both may set; None means "not set here"."""

    system_prompt: str | None = None
    options: dict[str, Any] = {}
    headers: dict[str, Secret] = {}
    stream: bool | None = None
    keep_alive: str | int | float | None = None
    api: Literal["openai", "a1111"] | None = None
    timeout_s: PositiveSeconds | None = None
    connect_timeout_s: PositiveSeconds | None = None
    first_token_timeout_s: PositiveSeconds | None = None
    idle_timeout_s: PositiveSeconds | None = None
    loading_timeout_s: NonNegativeSeconds | None = None
    max_concurrency: PositiveInt | None = None
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    env: dict[str, str] = {}
    cwd: str | None = None
    grace_s: NonNegativeSeconds | None = None
    max_output_bytes: Annotated[int, Meta(ge=1024)] | None = None
    idempotent: bool | None = None


class ProviderExtra(ProviderSettings, frozen=True, kw_only=True):
    """The `extra` of a profile."""

    server: ManagedServer | None = None
    command: list[str] = []
    sandbox: Sandbox | bool | None = None
    # Not in an override: those come over HTTP, and could take the memory of the machine.
    max_memory_bytes: Annotated[int, Meta(ge=0)] | None = None


class ProviderOverride(ProviderSettings, frozen=True, kw_only=True):
    """A step's `provider_override`: flat, with any key of `extra` that a pipeline may change."""

    base_uri: str | None = None
    default_model: str | None = None


class ProviderProfile(FrozenWire, frozen=True, kw_only=True):
    """Where and how a provider is reached; `api_key` is write-only."""

    id: str
    kind: ProviderKind
    base_uri: str = ""
    api_key: Secret | None = None
    default_model: str = ""
    extra: ProviderExtra = ProviderExtra()


# --- pipeline definitions ---------------------------------------------------------------------------------------------


class Prompt(FrozenWire, frozen=True, kw_only=True):
    """Templates; `meta.messages` holds few-shot turns, `{role, content}` each."""

    system: str | None = None
    user: str | None = None
    meta: dict[str, Any] = {}


class Split(FrozenWire, frozen=True, kw_only=True):
    """How sources are cut into shards; `size` and `overlap` count lines, characters or elements."""

    by: SplitBy
    size: PositiveInt | None = None
    overlap: Annotated[int, Meta(ge=0)] = 0
    pattern: str | None = None


class StepConfig(FrozenWire, frozen=True, kw_only=True):
    """A step's `config`; which keys a step may have depends on its kind (see pipeline.check)."""

    split: Split | None = None
    over: StepId | None = None
    batch_size: PositiveInt | None = None
    map: MapOperation | None = None
    reduce: ReduceOperation | None = None
    template: Annotated[str, KEEP_EMPTY] | None = None
    expression: str | None = None
    format: ParseFormat | None = None
    pattern: str | None = None
    separator: Annotated[str, KEEP_EMPTY] | None = None
    by: str | None = None
    n: PositiveInt | None = None
    handler: str | None = None
    idempotent: bool = True
    json_schema: dict[str, Any] | bool | None = None
    repair_attempts: Annotated[int, Meta(ge=0, le=10)] = 2


class Retry(FrozenWire, frozen=True, kw_only=True):
    max_attempts: Annotated[int, Meta(ge=1, le=100)] = 3
    backoff_s: NonNegativeSeconds = 1.0
    max_backoff_s: NonNegativeSeconds = 60.0


class StepDef(FrozenWire, frozen=True, kw_only=True):
    id: StepId
    kind: StepKind
    name: str = _always("")
    mode: StepMode = _always(StepMode.SINGLE)
    depends_on: list[StepId] = msgspec.field(default_factory=_empty_list)
    provider_profile_id: str | None = None
    provider_override: ProviderOverride | None = None
    prompt: Prompt = Prompt()
    output_type: OutputType = _always(OutputType.TEXT)
    output_format: OutputFormat = _always(OutputFormat.TEXT)
    config: StepConfig = StepConfig()
    export: bool = _always(False)
    export_tag: str | None = None
    when: str | None = None
    run_if_skipped: bool = False
    timeout_s: PositiveSeconds | None = None
    retry: Retry = Retry()
    on_error: ErrorPolicy = ErrorPolicy.FAIL
    max_concurrency: PositiveInt = 8
    on_item_error: ItemErrorPolicy = ItemErrorPolicy.FAIL

    @property
    def title(self) -> str:
        """What people call the step: its name, else its id."""
        return self.name or self.id


class Limits(FrozenWire, frozen=True, kw_only=True):
    max_provider_calls: PositiveInt | None = None
    max_total_tokens: PositiveInt | None = None


class PipelineDef(FrozenWire, frozen=True, kw_only=True):
    type: str
    steps: Annotated[list[StepDef], Meta(min_length=1)]
    version: str = _always("1")
    description: str | None = None
    timeout_s: PositiveSeconds | None = None
    options_schema: dict[str, Any] | None = None
    limits: Limits | None = None


# --- job requests -----------------------------------------------------------------------------------------------------


class Source(FrozenWire, frozen=True, kw_only=True):
    """A piece of input: a text, or bytes as `content_base64`."""

    kind: str = _always("raw")
    label: str = _always("")
    content: str = _always("")
    content_base64: str | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=_empty_dict)


class JobInput(FrozenWire, frozen=True, kw_only=True):
    sources: list[Source] = msgspec.field(default_factory=_empty_list)
    options: dict[str, Any] = msgspec.field(default_factory=_empty_dict)


Priority = Annotated[int, Meta(ge=-100, le=100)]
Labels = Annotated[dict[str, str], Meta(max_length=32)]


class JobRequest(FrozenWire, frozen=True, kw_only=True):
    pipeline_type: str | None = None
    pipeline: PipelineDef | None = None
    input: JobInput = JobInput()
    mode: JobMode = JobMode.ASYNC
    parent_job_id: JobId | None = None
    from_step_id: StepId | None = None
    reuse_upstream: bool = False
    # From here on None, or empty, is what the request does not say: a rerun takes that over from its parent.
    timeout_s: PositiveSeconds | None = None
    priority: Priority | None = None
    labels: Labels = {}
    limits: Limits | None = None
    dry_run: bool | None = None


class RerunRequest(FrozenWire, frozen=True, kw_only=True):
    from_step_id: StepId | None = None
    reuse_upstream: bool = False
    override_input: JobInput | None = None
    pipeline: Literal["latest", "same"] = "latest"


# --- jobs and what they make ------------------------------------------------------------------------------------------


class JobError(msgspec.Struct, kw_only=True):
    code: str
    message: str
    details: dict[str, Any] = {}


class Usage(msgspec.Struct, kw_only=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


class ResultItem(Wire, kw_only=True):
    """What one call of a step made. `data` has the keys that apply, among them text, json, prompt, provider, model,
    usage, finish_reason, reasoning, tool_calls, latency_ms (milliseconds), warnings, artifact, embedding, dimensions.
    """

    id: str
    label: str
    step_id: StepId
    shard_key: str | None = None
    is_primary: bool = False
    kind: StepKind
    tag: str | None = None
    content_type: OutputType
    data: dict[str, Any]


class JobResult(Wire, kw_only=True):
    items: list[ResultItem]
    meta: dict[str, Any]


class StepExecution(Wire, kw_only=True):
    step_id: StepId
    name: str
    status: StepStatus
    started_at: str | None = None
    finished_at: str | None = None
    error: JobError | None = None
    attempts: int
    items_total: int | None = None
    items_done: int
    errors: list[JobError] = []
    usage: Usage | None = None
    reused_from: JobId | None = None
    reason: str | None = None
    chunks: list[dict[str, Any]] | None = None


class Job(Wire, kw_only=True):
    """A job as the API shows it; `input` and `result` are left out where the contract leaves them out."""

    id: JobId
    pipeline_type: str
    pipeline_version: str
    status: JobStatus
    created_at: str
    updated_at: str
    started_at: str | None = None
    finished_at: str | None = None
    mode: JobMode
    input: JobInput | None = None
    result: JobResult | None = None
    error: JobError | None = None
    step_executions: list[StepExecution] | None = None
    parent_job_id: JobId | None = None
    rerun_from_step: StepId | None = None
    reuse_upstream: bool
    timeout_s: float | None = None
    dry_run: bool = False
    labels: dict[str, str]
    priority: int
    limits: Limits | None = None
    usage: Usage
    last_seq: int
    restarts: int


class StepCheckpoint(Wire, kw_only=True):
    """The finished item of a step, or of one of its shards."""

    job_id: JobId
    step_id: StepId
    shard_key: str | None = None
    result: ResultItem


class StoredCheckpoint(Wire, kw_only=True):
    """A StepCheckpoint as the store has it. Without a result it says that the item was left out: by the handler or,
    with an error, by the step's on_item_error.
    """

    job_id: JobId
    step_id: StepId
    shard_key: str | None = None
    result: ResultItem | None = None
    error: JobError | None = None
