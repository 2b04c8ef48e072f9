"""The types of requests and answers, as they stand on the wire.

Fields that this version does not know are passed over, so that an old client lives with a new daemon; for the same
reason statuses and kinds are plain texts. Times are RFC 3339 texts in UTC (see parse_timestamp); durations are seconds.
In requests a field with its default value is left out, and the daemon's own default holds.
"""

from __future__ import annotations

from typing import Any

import msgspec

FINAL_STATUSES = frozenset({"succeeded", "failed", "cancelled"})


class Model(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The base of all types of the SDK."""

    def to_dict(self) -> dict[str, Any]:
        """The value as plain JSON data."""
        value: dict[str, Any] = msgspec.to_builtins(self)
        return value


# --- input and definitions: what a client sends ----------------------------------------------------------------------


class Source(Model, frozen=True, kw_only=True):
    """A piece of input: a text, or bytes as `content_base64`."""

    kind: str = "raw"
    label: str = ""
    content: str = ""
    content_base64: str | None = None
    metadata: dict[str, Any] = {}


class JobInput(Model, frozen=True, kw_only=True):
    """What a job works on; the options are any JSON."""

    sources: list[Source] = []
    options: dict[str, Any] = {}


class Limits(Model, frozen=True, kw_only=True):
    """A budget; a job that reaches it fails with `budget_exceeded`."""

    max_provider_calls: int | None = None
    max_total_tokens: int | None = None


class Prompt(Model, frozen=True, kw_only=True):
    """Templates; `meta["messages"]` holds few-shot turns, `{"role", "content"}` each."""

    system: str | None = None
    user: str | None = None
    meta: dict[str, Any] = {}


class StepDef(Model, frozen=True, kw_only=True):
    """A step of a pipeline. `config`, `retry` and `provider_override` are JSON objects, as the daemon documents them."""

    id: str
    kind: str
    name: str = ""
    mode: str = "single"
    depends_on: list[str] = []
    provider_profile_id: str | None = None
    provider_override: dict[str, Any] | None = None
    prompt: Prompt | None = None
    output_type: str = "text"
    output_format: str = "text"
    config: dict[str, Any] = {}
    export: bool = False
    export_tag: str | None = None
    when: str | None = None
    run_if_skipped: bool = False
    timeout_s: float | None = None
    retry: dict[str, Any] | None = None
    on_error: str = "fail"
    max_concurrency: int | None = None
    on_item_error: str = "fail"


class PipelineDef(Model, frozen=True, kw_only=True):
    """A pipeline's definition; `options_schema` is a JSON Schema for the options of its jobs."""

    type: str
    steps: list[StepDef]
    version: str = "1"
    description: str | None = None
    timeout_s: float | None = None
    options_schema: dict[str, Any] | None = None
    limits: Limits | None = None


class JobRequest(Model, frozen=True, kw_only=True):
    """A job to run: a registered `pipeline_type`, or a `pipeline` of its own.

    `priority` is from -100 to 100 (0); there may be 32 labels. With `parent_job_id` the request is a rerun: what it leaves
    out of priority, labels, timeout, limits and `dry_run` is taken from the parent.
    """

    pipeline_type: str | None = None
    pipeline: PipelineDef | None = None
    input: JobInput | None = None
    parent_job_id: str | None = None
    from_step_id: str | None = None
    reuse_upstream: bool = False
    timeout_s: float | None = None
    priority: int | None = None
    labels: dict[str, str] = {}
    limits: Limits | None = None
    dry_run: bool | None = None


class RerunRequest(Model, frozen=True, kw_only=True):
    """How to run a job again; `pipeline` is `latest` or `same`."""

    from_step_id: str | None = None
    reuse_upstream: bool = False
    override_input: JobInput | None = None
    pipeline: str = "latest"


class ProviderProfile(Model, frozen=True, kw_only=True):
    """Where and how a provider is reached. `api_key` can be set, but is never answered: see `api_key_set`."""

    id: str
    kind: str
    base_uri: str = ""
    api_key: str | None = None
    api_key_set: bool = False
    default_model: str = ""
    extra: dict[str, Any] = {}


# --- jobs: what the daemon answers ------------------------------------------------------------------------------------


class Usage(Model, frozen=True, kw_only=True):
    """Tokens that were consumed."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class JobError(Model, frozen=True, kw_only=True):
    """Why a job, a step or an item failed; `details` may hold `step_id`, `shard_key`, `attempt` and more."""

    code: str
    message: str
    details: dict[str, Any] = {}


class ResultItem(Model, frozen=True, kw_only=True):
    """What one call of a step made. `data` has the keys that apply, among them `text`, `json`, `model`, `usage`,
    `finish_reason`, `tool_calls`, `artifact` (`{"id", "url", "mime_type", "bytes", "sha256"}`) and `embedding`.
    """

    id: str
    label: str
    step_id: str
    shard_key: str | None = None
    is_primary: bool = False
    kind: str
    tag: str | None = None
    content_type: str
    data: dict[str, Any] = {}

    @property
    def text(self) -> str | None:
        """The text of the item, if it has one."""
        return self.data.get("text")


class JobResult(Model, frozen=True, kw_only=True):
    """The items of the exported steps, in the order of the definition."""

    items: list[ResultItem] = []
    meta: dict[str, Any] = {}


class StepExecution(Model, frozen=True, kw_only=True):
    """What became of a step: `pending`, `running`, `success`, `failed`, `skipped` or `cancelled`."""

    step_id: str
    status: str
    name: str = ""
    started_at: str | None = None
    finished_at: str | None = None
    error: JobError | None = None
    attempts: int = 0
    items_total: int | None = None
    items_done: int = 0
    errors: list[JobError] = []
    usage: Usage | None = None
    reused_from: str | None = None
    reason: str | None = None
    chunks: list[dict[str, Any]] | None = None


class Job(Model, frozen=True, kw_only=True):
    """A job: `queued`, `running`, `succeeded`, `failed` or `cancelled`. Lists of jobs leave input and steps out."""

    id: str
    pipeline_type: str
    status: str
    created_at: str
    updated_at: str
    pipeline_version: str = ""
    started_at: str | None = None
    finished_at: str | None = None
    mode: str = "async"
    input: JobInput | None = None
    result: JobResult | None = None
    error: JobError | None = None
    step_executions: list[StepExecution] | None = None
    parent_job_id: str | None = None
    rerun_from_step: str | None = None
    reuse_upstream: bool = False
    timeout_s: float | None = None
    dry_run: bool = False
    labels: dict[str, str] = {}
    priority: int = 0
    limits: Limits | None = None
    usage: Usage = Usage()
    last_seq: int = 0
    restarts: int = 0

    @property
    def is_final(self) -> bool:
        """Whether the job is over."""
        return self.status in FINAL_STATUSES


class JobPage(Model, frozen=True, kw_only=True):
    """A page of jobs, newest first; `next_cursor` asks for the next one, None after the last."""

    jobs: list[Job]
    next_cursor: str | None = None


class StepCheckpoint(Model, frozen=True, kw_only=True):
    """The finished item of a step, or of one of its shards."""

    job_id: str
    step_id: str
    shard_key: str | None = None
    result: ResultItem


class Event(Model, frozen=True, kw_only=True):
    """One event of a job: `seq` counts from 1 without a gap, `ts` is its time; what `data` holds depends on `event`."""

    seq: int
    event: str
    job_id: str
    ts: str
    data: dict[str, Any]


class EventPage(Model, frozen=True, kw_only=True):
    """Some events of a job, and the greatest seq that it has so far."""

    events: list[Event]
    last_seq: int


# --- the daemon itself ------------------------------------------------------------------------------------------------


class Health(Model, frozen=True, kw_only=True):
    """That the daemon is alive (`ok`), its version, and the seconds since its start."""

    status: str
    version: str = ""
    uptime_sec: float = 0.0


class ValidationProblem(Model, frozen=True, kw_only=True):
    """What is wrong, and where in the definition."""

    path: str
    message: str


class Validation(Model, frozen=True, kw_only=True):
    """Whether a definition is sound, and every problem that it has."""

    valid: bool
    errors: list[ValidationProblem] = []


class Metrics(Model, frozen=True, kw_only=True):
    """What the daemon counted since its start, for each kind of provider; latency is the total in milliseconds."""

    provider_call_count: dict[str, int] = {}
    provider_call_latency: dict[str, int] = {}
    provider_call_errors: dict[str, int] = {}
    provider_chunk_count: dict[str, int] = {}
