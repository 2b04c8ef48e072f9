"""The structured outputs of the tools: jobs, items, events and pipelines as models need them, bounded in size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from msgspec import Meta

from pipeline_engine.jsontext import dumps_compact
from pipeline_engine.mcp_server.bounds import ANSWER, cut_text, cut_value, shares
from pipeline_engine.mcp_server.tool import Output
from pipeline_engine_sdk import Event, Job, JobError, PipelineDef, ResultItem, StepExecution

SCHEME = "pipeline-engine://"

OVERVIEW_ITEMS = 50  # items that come with a job
MOST_STEPS = 100  # of a job


class Failure(Output, frozen=True, kw_only=True):
    code: str
    message: str
    details: Annotated[dict[str, Any], Meta(description="Where it failed and what is known, such as step_id.")] = {}


class StepView(Output, frozen=True, kw_only=True):
    step_id: str
    status: Annotated[str, Meta(description="pending, running, success, failed, skipped or cancelled.")]
    name: str = ""
    attempts: int = 0
    items_done: int = 0
    items_total: int | None = None
    reused_from: Annotated[str, Meta(description="The job whose items a rerun took over.")] = ""
    error: Failure | None = None


class ArtifactView(Output, frozen=True, kw_only=True):
    artifact_id: Annotated[str, Meta(description="For get_artifact.")]
    uri: Annotated[str, Meta(description="The resource that has its bytes.")]
    mime_type: str = ""
    bytes: int = 0


class ItemView(Output, frozen=True, kw_only=True):
    """What one call of an exported step made: a `json` value, or a `text`, which may be cut."""

    index: Annotated[int, Meta(description="Its place among the items of the job; for get_items.")]
    label: str
    step_id: str
    content_type: str
    shard_key: str = ""
    tag: str = ""
    is_primary: Annotated[bool, Meta(description="It is of the last exported step.")] = False
    json: Any = None
    text: str = ""
    length: Annotated[int, Meta(description="Characters of the whole text, or of the JSON text.")] = 0
    next_offset: Annotated[
        int | None, Meta(description="The text is cut here: get_items with first=index, limit=1 and this offset.")
    ] = None
    artifacts: list[ArtifactView] = []
    dimensions: Annotated[int | None, Meta(description="Of an embedding, which itself is left out.")] = None
    model: str = ""
    finish_reason: str = ""
    warnings: list[Any] = []


class ItemsAnswer(Output, frozen=True, kw_only=True):
    job_id: str
    status: str
    items: list[ItemView] = []
    items_total: int = 0
    note: Annotated[str, Meta(description="What to do next, if something is missing.")] = ""


class JobView(Output, frozen=True, kw_only=True):
    id: str
    pipeline_type: str
    status: Annotated[str, Meta(description="queued, running, succeeded, failed or cancelled.")]
    created_at: str
    pipeline_version: str = ""
    started_at: str = ""
    finished_at: str = ""
    mode: str = ""
    parent_job_id: str = ""
    labels: dict[str, str] = {}
    dry_run: bool = False
    last_seq: Annotated[int, Meta(description="The number of its events so far.")] = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: Failure | None = None
    steps: list[StepView] = []
    steps_total: int = 0


class JobAnswer(Output, frozen=True, kw_only=True):
    """A job; once it has succeeded, with the items of its result."""

    job: JobView
    items: list[ItemView] = []
    items_total: int = 0
    note: Annotated[str, Meta(description="What to do next, if something is missing.")] = ""


class StateAnswer(Output, frozen=True, kw_only=True):
    """A job without its result."""

    job: JobView
    note: Annotated[str, Meta(description="What to do next.")] = ""


class JobsAnswer(Output, frozen=True, kw_only=True):
    jobs: list[JobView]
    next_cursor: str = ""


class EventsAnswer(Output, frozen=True, kw_only=True):
    events: Annotated[list[dict[str, Any]], Meta(description="`{seq, event, ts, data}`, long values cut.")]
    last_seq: Annotated[int, Meta(description="The newest event that there is.")]
    next_after_seq: Annotated[int, Meta(description="after_seq of the next page.")]


class ArtifactAnswer(Output, frozen=True, kw_only=True):
    artifact: ArtifactView
    step_id: str
    note: Annotated[str, Meta(description="Why it is not shown, and how to get it.")] = ""


class PipelineView(Output, frozen=True, kw_only=True):
    type: str
    version: str
    description: str = ""
    options_schema: Annotated[dict[str, Any] | None, Meta(description="A JSON Schema for `options`.")] = None
    steps: Annotated[list[str], Meta(description="`id (kind, mode)` of each step, * if its items are exported.")] = []


class PipelinesAnswer(Output, frozen=True, kw_only=True):
    pipelines: list[PipelineView]
    total: Annotated[int, Meta(description="How many fit; more than are given if a narrower `contains` is needed.")] = 0


class PipelineAnswer(Output, frozen=True, kw_only=True):
    pipeline: Annotated[dict[str, Any], Meta(description="The definition.")]
    note: str = ""


class ValidationAnswer(Output, frozen=True, kw_only=True):
    valid: bool
    errors: Annotated[list[dict[str, Any]], Meta(description="`{path, message}` of each problem.")] = []
    errors_total: int = 0


def uri_of_pipeline(pipeline_type: str) -> str:
    return f"{SCHEME}pipelines/{quote(pipeline_type, safe='')}"


def uri_of_job(job_id: str) -> str:
    return f"{SCHEME}jobs/{quote(job_id, safe='')}"


def view_failure(error: JobError | None) -> Failure | None:
    if error is None:
        return None
    return Failure(code=error.code, message=cut_text(error.message, 2000), details=cut_value(error.details))


def view_step(step: StepExecution) -> StepView:
    return StepView(
        step_id=step.step_id,
        status=step.status,
        name=step.name,
        attempts=step.attempts,
        items_done=step.items_done,
        items_total=step.items_total,
        reused_from=step.reused_from or "",
        error=view_failure(step.error),
    )


def view_summary(job: Job) -> JobView:
    """The job for a list: of its error, the code and the beginning of the message."""
    error = Failure(code=job.error.code, message=cut_text(job.error.message)) if job.error is not None else None
    return msgspec.structs.replace(view_job(job), error=error)


def view_job(job: Job) -> JobView:
    return JobView(
        id=job.id,
        pipeline_type=job.pipeline_type,
        status=job.status,
        created_at=job.created_at,
        pipeline_version=job.pipeline_version,
        started_at=job.started_at or "",
        finished_at=job.finished_at or "",
        mode=job.mode,
        parent_job_id=job.parent_job_id or "",
        labels=job.labels,
        dry_run=job.dry_run,
        last_seq=job.last_seq,
        prompt_tokens=job.usage.prompt_tokens,
        completion_tokens=job.usage.completion_tokens,
        error=view_failure(job.error),
        steps=[view_step(step) for step in (job.step_executions or ())[:MOST_STEPS]],
        steps_total=len(job.step_executions or ()),
    )


def answer_job(job: Job, *, note: str = "") -> JobAnswer:
    items = items_of(job)
    views = view_items(job, first=0, limit=OVERVIEW_ITEMS)
    note = note or note_on(views, items_total=len(items))
    return JobAnswer(job=view_job(job), items=views, items_total=len(items), note=note)


def answer_items(job: Job, *, first: int, limit: int, offset: int) -> ItemsAnswer:
    items = items_of(job)
    views = view_items(job, first=first, limit=limit, offset=offset)
    note = note_on(views, items_total=len(items)) if job.is_final else f"The job is {job.status}: it has no result yet."
    return ItemsAnswer(job_id=job.id, status=job.status, items=views, items_total=len(items), note=note)


def items_of(job: Job) -> list[ResultItem]:
    return job.result.items if job.result is not None else []


def view_items(job: Job, *, first: int, limit: int, offset: int = 0) -> list[ItemView]:
    """Items from `first` on, their texts cut so that all together keep within bounds; the first from `offset` on."""
    items = items_of(job)[first : first + limit]
    texts = [text_of(item) for item in items]
    starts = [min(offset, len(text)) if place == 0 else 0 for place, text in enumerate(texts)]
    granted = shares([len(text) - start for text, start in zip(texts, starts, strict=True)], ANSWER)
    return [
        _view_item(job.id, item, first + place, text, start, start + share)
        for place, (item, text, start, share) in enumerate(zip(items, texts, starts, granted, strict=True))
    ]


def text_of(item: ResultItem) -> str:
    """The text of the item; its value as JSON, if it has one."""
    value = item.data.get("json")
    return item.text or "" if value is None else dumps_compact(value)


def _view_item(job_id: str, item: ResultItem, index: int, text: str, start: int, end: int) -> ItemView:
    is_whole = start == 0 and end == len(text)
    value = item.data.get("json") if is_whole else None
    return ItemView(
        index=index,
        label=item.label,
        step_id=item.step_id,
        content_type=item.content_type,
        shard_key=item.shard_key or "",
        tag=item.tag or "",
        is_primary=item.is_primary,
        json=value,
        text=text[start:end] if value is None else "",
        length=len(text),
        next_offset=end if end < len(text) else None,
        artifacts=view_artifacts(job_id, item),
        dimensions=item.data.get("dimensions"),
        model=item.data.get("model") or "",
        finish_reason=item.data.get("finish_reason") or "",
        warnings=cut_value(item.data.get("warnings") or []),
    )


def view_artifacts(job_id: str, item: ResultItem) -> list[ArtifactView]:
    artifacts = item.data.get("artifacts") or [item.data["artifact"]] if "artifact" in item.data else []
    return [
        ArtifactView(
            artifact_id=one["id"],
            uri=f"{uri_of_job(job_id)}/artifacts/{quote(one['id'], safe='')}",
            mime_type=one.get("mime_type") or "",
            bytes=one.get("bytes") or 0,
        )
        for one in artifacts
    ]


def note_on(views: Sequence[ItemView], *, items_total: int) -> str:
    """How to get what is missing of a page of items; empty if it is the end and nothing is cut."""
    notes = []
    if cut := [view.index for view in views if view.next_offset is not None]:
        listed = ", ".join(map(str, cut[:10])) + (" and more" if len(cut) > 10 else "")
        notes.append(
            f"Cut: items {listed}. Their texts go on with get_items: first=index, limit=1, offset=next_offset."
        )
    if views and (after := views[-1].index + 1) < items_total:
        notes.append(f"There are {items_total} items; the next ones come with get_items: first={after}.")
    return " ".join(notes)


def view_event(event: Event) -> dict[str, Any]:
    return {"seq": event.seq, "event": event.event, "ts": event.ts, "data": cut_value(event.data)}


def view_pipeline(definition: PipelineDef) -> PipelineView:
    return PipelineView(
        type=definition.type,
        version=definition.version,
        description=cut_text(definition.description or "", 2000),
        options_schema=cut_value(definition.options_schema),
        steps=[
            f"{step.id} ({step.kind}, {step.mode}){'*' if step.export else ''}"
            for step in definition.steps[:MOST_STEPS]
        ],
    )


def to_plain(output: Output) -> dict[str, Any]:
    """The output as JSON data."""
    value: dict[str, Any] = msgspec.to_builtins(output)
    return value
