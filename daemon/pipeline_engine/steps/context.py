"""What the steps of one running job share: its input, its log, the items made so far, and the engine's services."""

from __future__ import annotations

import base64
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio

from pipeline_engine.decoding import to_json
from pipeline_engine.errors import ErrorCode, StepError
from pipeline_engine.events import JobLog
from pipeline_engine.models import (
    Job,
    JobError,
    JobInput,
    Limits,
    PipelineDef,
    ResultItem,
    Source,
    StepDef,
    StepExecution,
    StepId,
    StepStatus,
    StoredCheckpoint,
    Usage,
    now_rfc3339,
)
from pipeline_engine.pipeline import Graph
from pipeline_engine.providers.mime import sniff_mime
from pipeline_engine.providers.registry import ProviderRegistry
from pipeline_engine.redaction import Redactor
from pipeline_engine.renderer import Renderer
from pipeline_engine.steps.handler_threads import HandlerThreads
from pipeline_engine.steps.handlers import Handlers
from pipeline_engine.store.artifacts import ArtifactFiles
from pipeline_engine.store.base import CheckpointRecord, ExecutionRecord
from pipeline_engine.tracing import NO_TRACER, TraceHeaders, Tracer
from pipeline_engine.worker_processes import WorkerProcesses

ItemKey = tuple[StepId, str | None]  # a step and a shard_key: what attempts are counted for
PlacedCheckpoint = tuple[int, StoredCheckpoint]  # with the place of the shard in its step


@dataclass(slots=True)
class StepStats:
    """How many steps run, and how many came to which status since the start."""

    running: int = 0
    ended: Counter[StepStatus] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the engine lends to all jobs."""

    renderer: Renderer
    processes: WorkerProcesses
    registry: ProviderRegistry
    handlers: Handlers
    artifacts: ArtifactFiles
    workers: trio.CapacityLimiter
    # Apart from the workers: a handler that hangs, even after its job was cancelled, holds its thread.
    handler_threads: HandlerThreads = field(default_factory=HandlerThreads)
    max_items: int = 10_000
    jitter: random.Random = field(default_factory=random.Random)
    tracer: Tracer = NO_TRACER
    redactor: Redactor = field(default_factory=Redactor)
    step_stats: StepStats = field(default_factory=StepStats)


class JobState(msgspec.Struct, omit_defaults=True):
    """What the store keeps of a running job besides what clients see, for the next start of the daemon.

    `ran_s` is for how long the job had been running at `saved_at`; `steps_began_s` at which point of that time each
    step began; `cancel_reason` that a cancellation was asked for; `trace` the trace context of the request.
    """

    ran_s: float = 0.0
    saved_at: str = ""
    steps_began_s: dict[StepId, float] = {}
    cancel_reason: str | None = None
    trace: TraceHeaders | None = None


@dataclass(slots=True)
class Budget:
    """What a job may still spend on providers (`limits` of the pipeline and of the job)."""

    limits: Limits
    calls: int = 0
    tokens: int = 0

    def spend_call(self) -> None:
        """Count a provider call; raises StepError when there is none left."""
        self.check()
        self.calls += 1

    def check(self) -> None:
        """Raises StepError when nothing is left for a call."""
        limits = self.limits
        if limits.max_provider_calls is not None and self.calls >= limits.max_provider_calls:
            raise self._exceeded("max_provider_calls", limits.max_provider_calls)
        if limits.max_total_tokens is not None and self.tokens >= limits.max_total_tokens:
            raise self._exceeded("max_total_tokens", limits.max_total_tokens)

    def return_call(self) -> None:
        """The call was no attempt: the server only said that it is loading the model."""
        self.calls -= 1

    def spend_tokens(self, usage: Usage | None) -> None:
        if usage is not None:
            self.tokens += usage.prompt_tokens + usage.completion_tokens

    @staticmethod
    def _exceeded(limit: str, value: int) -> StepError:
        words = f"the job has reached limits.{limit} ({value}); a rerun with reuse_upstream can go on from here"
        return StepError(ErrorCode.BUDGET_EXCEEDED, words)


class JobContext:
    """One running job, as its steps see it.

    `checkpoints` are of items that need not be made again, by step and by shard; `attempts` the number of the last
    attempt at an item that an earlier run of the daemon began.
    """

    def __init__(
        self,
        *,
        job: Job,
        definition: PipelineDef,
        job_input: JobInput,
        log: JobLog,
        services: Services,
        state: JobState,
        executions: Mapping[StepId, StepExecution],
        checkpoints: Iterable[PlacedCheckpoint],
        attempts: Mapping[ItemKey, int],
        limits: Limits,
    ) -> None:
        self.job = job
        self.graph = Graph(definition)
        self.input = job_input
        self.log = log
        self.services = services
        self.executions = dict(executions)
        self.attempts = dict(attempts)
        self.items: dict[StepId, list[ResultItem]] = {}
        self.budget = Budget(limits)
        self.usage = Usage()
        self.source_views = [source_view(source) for source in job_input.sources]
        self._source_images: list[bytes | None] | None = None
        self._state = state
        self._views: dict[StepId, list[dict[str, Any]]] = {}
        self._checkpoints: dict[StepId, dict[str | None, PlacedCheckpoint]] = {}
        for index, point in checkpoints:
            self._checkpoints.setdefault(point.step_id, {})[point.shard_key] = (index, point)
        self._positions = {step.id: index for index, step in enumerate(definition.steps)}
        self._began = trio.current_time() - state.ran_s

    # time

    @property
    def ran_s(self) -> float:
        """For how many seconds the job has been running, over all runs of the daemon."""
        return trio.current_time() - self._began

    @property
    def noted_s(self) -> float:
        """What the store was last told of `ran_s`."""
        return self._state.ran_s

    def step_deadline(self, step: StepDef) -> float:
        """When the step's time is over, on trio's clock."""
        if step.timeout_s is None:
            return float("inf")
        began_s = self._state.steps_began_s.setdefault(step.id, self.ran_s)
        return self._began + began_s + step.timeout_s

    def state(self) -> JobState:
        self._state.ran_s = self.ran_s
        self._state.saved_at = now_rfc3339()
        return self._state

    # what has been made

    def finish_items(self, step_id: StepId, items: Sequence[ResultItem]) -> None:
        """The step is done with these items: the steps that depend on it see them from now on."""
        self.items[step_id] = list(items)
        self._views[step_id] = [view_of(item) for item in items]

    def views(self, step_id: StepId) -> list[dict[str, Any]]:
        """The items of a step as templates see them; none if it was skipped."""
        return self._views.get(step_id, [])

    def checkpoints(self, step_id: StepId) -> Mapping[str | None, PlacedCheckpoint]:
        """What was stored of the step's items before this run of the job, by shard_key and in the order of the shards."""
        return self._checkpoints.get(step_id, {})

    def items_before(self, step_id: StepId) -> list[ResultItem]:
        """The items among those checkpoints."""
        return [point.result for _, point in self.checkpoints(step_id).values() if point.result is not None]

    def add_usage(self, usage: Usage | None, execution: StepExecution) -> None:
        if usage is None:
            return
        self.usage += usage
        execution.usage = usage if execution.usage is None else execution.usage + usage
        self.budget.spend_tokens(usage)

    def execution_record(self, step_id: StepId) -> ExecutionRecord:
        return ExecutionRecord(self._positions[step_id], to_json(self.executions[step_id]))

    def progress_record(self, step_id: StepId) -> ExecutionRecord:
        """The execution of a step that runs, without its errors: they can be many, and each stands in a checkpoint."""
        execution = msgspec.structs.replace(self.executions[step_id], errors=[])
        return ExecutionRecord(self._positions[step_id], to_json(execution))

    def checkpoint_record(self, item: ResultItem, index: int) -> CheckpointRecord:
        point = StoredCheckpoint(job_id=self.job.id, step_id=item.step_id, shard_key=item.shard_key, result=item)
        return CheckpointRecord(self._positions[item.step_id], index, to_json(point))

    def left_out_record(
        self, step_id: StepId, shard_key: str | None, index: int, *, error: JobError | None = None
    ) -> CheckpointRecord:
        """What says that there is no item of this shard, so that nobody makes it after a restart; `error` says why."""
        point = StoredCheckpoint(job_id=self.job.id, step_id=step_id, shard_key=shard_key, error=error)
        return CheckpointRecord(self._positions[step_id], index, to_json(point))

    def may_repeat(self, step: StepDef) -> bool:
        """Whether what the step does may be started again after a crash (`idempotent`)."""
        if not step.config.idempotent or step.provider_profile_id is None:
            return step.config.idempotent
        profile = self.services.registry.get(step.provider_profile_id)
        override = step.provider_override.idempotent if step.provider_override is not None else None
        if override is None and profile is not None:
            override = profile.extra.idempotent
        return override is not False

    # what templates see

    @property
    def source_images(self) -> list[bytes | None]:
        """For each source its bytes if it is an image: a model gets them beside the prompt, not as a text in it."""
        if self._source_images is None:
            self._source_images = [image_of(source) for source in self.input.sources]
        return self._source_images

    def scope(self, step: StepDef) -> dict[str, Any]:
        """The names that the templates and expressions of a step may use, whatever the item."""
        previous = {step_id: self.views(step_id) for step_id in self.graph.ancestors(step.id)}
        job = self.job
        return {
            "sources": self.source_views,
            "options": self.input.options,
            "job": {
                "id": job.id,
                "pipeline_type": job.pipeline_type,
                "labels": job.labels,
                "created_at": job.created_at,
            },
            "step": {"id": step.id, "name": step.title},
            "previous": previous,
        }


def view_of(item: ResultItem) -> dict[str, Any]:
    """An item as templates and transforms see it; it has an `embedding` only if it is one."""
    view = {
        "text": item.data.get("text", ""),
        "json": item.data.get("json"),
        "label": item.label,
        "shard_key": item.shard_key,
    }
    if "embedding" in item.data:
        view["embedding"] = item.data["embedding"]
    return view


def artifact_ids(item: ResultItem) -> list[str]:
    """The SHA-256 of each artifact that the item refers to."""
    artifacts = item.data.get("artifacts") or [item.data["artifact"]] if "artifact" in item.data else []
    return [artifact["sha256"] for artifact in artifacts]


def image_of(source: Source) -> bytes | None:
    """The bytes of a source that is an image."""
    if source.content_base64 is None:
        return None
    data = base64.b64decode(source.content_base64)
    return None if sniff_mime(data) is None else data


def source_view(source: Source) -> dict[str, Any]:
    """A source as templates see it: bytes are their text if they are UTF-8, else a note of their size."""
    content = source.content
    if source.content_base64 is not None:
        data = base64.b64decode(source.content_base64)
        try:
            content = data.decode()
        except UnicodeDecodeError:
            content = f"[{len(data)} bytes that are not text]"
    return {"kind": source.kind, "label": source.label, "content": content, "metadata": source.metadata}


def job_error(exc: StepError, *, step_id: StepId | None = None, shard_key: str | None = None) -> JobError:
    """The error as clients see it, with the place where it happened."""
    place: dict[str, Any] = {}
    if step_id is not None:
        place["step_id"] = step_id
    if shard_key is not None:
        place["shard_key"] = shard_key
    return JobError(code=exc.code, message=exc.message, details={**place, **exc.details})
