"""The arguments of the tools; their schemas, which models read, are made of these structs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from pipeline_engine.mcp_server.tool import Arguments
from pipeline_engine.models import JobStatus

#: Clients give up on a call after a minute, and most count neither progress nor patience.
DEFAULT_WAIT = 50.0  # seconds
LONGEST_WAIT = 3600.0  # seconds

JobId = Annotated[str, Meta(min_length=1, description="The id of the job, such as job_01m88….")]
FirstItem = Annotated[int, Meta(ge=0, description="The index of the first item to give.")]
Labels = Annotated[dict[str, str], Meta(description="Names and values to find the job by.")]


class SourceArgument(Arguments, frozen=True, kw_only=True):
    """A piece of input: a text as `content`, or bytes as `content_base64`."""

    kind: Annotated[str, Meta(description="What it is; `log`, `code`, `note` and `raw` are the usual ones.")] = "raw"
    label: Annotated[str, Meta(description="What people call it, such as the name of a file.")] = ""
    content: Annotated[str, Meta(description="The text.")] = ""
    content_base64: Annotated[str, Meta(description="Bytes, such as an image, in base64; instead of `content`.")] = ""
    path: Annotated[str, Meta(description="A file to read, below an allowed directory; instead of `content`.")] = ""


Sources = Annotated[list[SourceArgument], Meta(description="What the job works on.")]
Options = Annotated[
    dict[str, Any], Meta(description="Options; the pipeline's options_schema, if it has one, says which there are.")
]


class SubmitJob(Arguments, frozen=True, kw_only=True):
    pipeline_type: Annotated[
        str, Meta(description="The type of a registered pipeline, from list_pipelines; or else give `pipeline`.")
    ] = ""
    pipeline: Annotated[
        dict[str, Any],
        Meta(description="A whole definition `{type, version, steps}` instead of `pipeline_type`, for this job only."),
    ] = {}
    sources: Sources = []
    options: Options = {}
    labels: Labels = {}
    timeout_s: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="Seconds after which the job is ended.")
    ] = None
    dry_run: Annotated[
        bool, Meta(description="Render the prompts and walk the steps, but call no model, tool or handler.")
    ] = False


class RunPipeline(SubmitJob, frozen=True, kw_only=True):
    wait_s: Annotated[
        float,
        Meta(
            gt=0,
            le=LONGEST_WAIT,
            description="Seconds to wait. If the job takes longer it goes on, and get_job can wait for it.",
        ),
    ] = DEFAULT_WAIT


class GetJob(Arguments, frozen=True, kw_only=True):
    job_id: JobId
    wait_s: Annotated[
        float, Meta(ge=0, le=LONGEST_WAIT, description="Seconds to wait for the job's end if it still runs.")
    ] = 0.0


class GetItems(Arguments, frozen=True, kw_only=True):
    job_id: JobId
    first: FirstItem = 0
    limit: Annotated[
        int, Meta(ge=1, le=100, description="How many items; with 1 a long text comes in large pages.")
    ] = 20
    offset: Annotated[
        int, Meta(ge=0, description="Characters of the first item's text to leave out: its next_offset of before.")
    ] = 0


class ListJobs(Arguments, frozen=True, kw_only=True):
    status: Annotated[JobStatus | None, Meta(description="Only jobs of this status.")] = None
    pipeline_type: Annotated[str, Meta(description="Only jobs of this pipeline.")] = ""
    labels: Annotated[dict[str, str], Meta(description="Only jobs that have all of these.")] = {}
    limit: Annotated[int, Meta(ge=1, le=100, description="How many.")] = 20
    cursor: Annotated[str, Meta(description="The next_cursor of the page before.")] = ""


class CancelJob(Arguments, frozen=True, kw_only=True):
    job_id: JobId
    reason: Annotated[str, Meta(description="Why; it stands in the job's error.")] = ""


class RerunJob(Arguments, frozen=True, kw_only=True):
    job_id: JobId
    from_step_id: Annotated[str, Meta(description="Run this step and all that depend on it again.")] = ""
    reuse_upstream: Annotated[
        bool,
        Meta(
            description="Take over what succeeded and does not depend on from_step_id; without that, all that succeeded."
        ),
    ] = False
    pipeline: Annotated[
        Literal["latest", "same"], Meta(description="The definition as it is now, or as the job ran it.")
    ] = "latest"
    sources: Annotated[
        list[SourceArgument], Meta(description="With `options` a new input in place of the old; without both it stays.")
    ] = []
    options: Annotated[
        dict[str, Any], Meta(description="With `sources` a new input in place of the old; without both it stays.")
    ] = {}


class GetJobEvents(Arguments, frozen=True, kw_only=True):
    job_id: JobId
    after_seq: Annotated[int, Meta(ge=0, description="Only later events: the next_after_seq of the page before.")] = 0
    limit: Annotated[int, Meta(ge=1, le=200, description="How many.")] = 50
    include_chunks: Annotated[bool, Meta(description="Also the single pieces of models' answers.")] = False


class GetArtifact(Arguments, frozen=True, kw_only=True):
    job_id: JobId
    artifact_id: Annotated[str, Meta(min_length=1, description="The id in `artifacts` of an item.")]


class ListPipelines(Arguments, frozen=True, kw_only=True):
    contains: Annotated[str, Meta(description="Only pipelines with this text in their type or description.")] = ""


class GetPipeline(Arguments, frozen=True, kw_only=True):
    pipeline_type: Annotated[str, Meta(min_length=1, description="The type, from list_pipelines.")]


class ValidatePipeline(Arguments, frozen=True, kw_only=True):
    pipeline: Annotated[dict[str, Any], Meta(description="The definition: `{type, version, steps}`.")]
