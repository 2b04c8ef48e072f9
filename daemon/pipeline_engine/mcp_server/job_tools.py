"""The tools for jobs: run, submit, look at and into, cancel, run again."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from mcp.types import ImageContent, ResourceLink, ToolAnnotations

from pipeline_engine.errors import InvalidRequestError, Problem
from pipeline_engine.jsontext import dumps_compact
from pipeline_engine.mcp_server import arguments as args
from pipeline_engine.mcp_server import views
from pipeline_engine.mcp_server.bounds import ANSWER
from pipeline_engine.mcp_server.resources import find_artifact
from pipeline_engine.mcp_server.running import run_job, wait_for_job
from pipeline_engine.mcp_server.tool import READS, Answer, Call, Tool

# Jobs are added and never overwritten. Pipelines call models and programs, which are the world outside.
STARTS = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=True)
ENDS = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)

MOST_READ = 5_000  # events that one call looks at while it searches for those that are wanted

#: Bytes. What is shown to a model goes in base64, a third longer; models take images of 5 MB.
LARGEST_SHOWN = 3_750_000

GOES_ON = "The job goes on. get_job with its id and wait_s waits for it; cancel_job ends it."


async def run_pipeline(call: Call, arguments: args.RunPipeline) -> Answer:
    job = await run_job(call, await _request_of(call, arguments), wait_s=arguments.wait_s)
    if not job.is_final:
        return Answer(output=views.answer_job(job, note=f"Not finished after {arguments.wait_s:g} s. {GOES_ON}"))
    return Answer(output=views.answer_job(job), is_error=job.status != "succeeded")


async def submit_job(call: Call, arguments: args.SubmitJob) -> Answer:
    job = await call.client.create_job(await _request_of(call, arguments))
    return Answer(output=views.StateAnswer(job=views.view_job(job), note=GOES_ON))


async def get_job(call: Call, arguments: args.GetJob) -> Answer:
    if arguments.wait_s:
        job = await wait_for_job(call, arguments.job_id, wait_s=arguments.wait_s)
    else:
        job = await call.client.get_job(arguments.job_id)
    return Answer(output=views.answer_job(job, note="" if job.is_final else GOES_ON))


async def get_items(call: Call, arguments: args.GetItems) -> Answer:
    job = await call.client.get_job(arguments.job_id)
    page = views.answer_items(job, first=arguments.first, limit=arguments.limit, offset=arguments.offset)
    return Answer(output=page)


async def list_jobs(call: Call, arguments: args.ListJobs) -> Answer:
    page = await call.client.list_jobs(
        status=arguments.status,
        pipeline_type=arguments.pipeline_type or None,
        labels=arguments.labels,
        limit=arguments.limit,
        cursor=arguments.cursor or None,
    )
    jobs = [views.view_summary(job) for job in page.jobs]
    return Answer(output=views.JobsAnswer(jobs=jobs, next_cursor=page.next_cursor or ""))


async def cancel_job(call: Call, arguments: args.CancelJob) -> Answer:
    job = await call.client.cancel_job(arguments.job_id, reason=arguments.reason)
    return Answer(output=views.StateAnswer(job=views.view_job(job)))


async def rerun_job(call: Call, arguments: args.RerunJob) -> Answer:
    has_input = bool(arguments.sources or arguments.options)
    job = await call.client.rerun_job(
        arguments.job_id,
        from_step_id=arguments.from_step_id or None,
        reuse_upstream=arguments.reuse_upstream,
        override_input=await _input_of(call, arguments.sources, arguments.options) if has_input else None,
        pipeline=arguments.pipeline,
    )
    return Answer(output=views.StateAnswer(job=views.view_job(job), note=GOES_ON))


async def get_job_events(call: Call, arguments: args.GetJobEvents) -> Answer:
    events: list[dict[str, Any]] = []
    seq = arguments.after_seq
    size = 0
    while True:
        page = await call.client.list_events(arguments.job_id, after_seq=seq, limit=500)
        for event in page.events:
            seq = event.seq
            if event.event != "provider_chunk" or arguments.include_chunks:
                events.append(views.view_event(event))
                size += len(dumps_compact(events[-1]))
            if len(events) == arguments.limit or size > ANSWER:
                break
        else:
            if page.events and seq - arguments.after_seq < MOST_READ:
                continue
        return Answer(output=views.EventsAnswer(events=events, last_seq=page.last_seq, next_after_seq=seq))


async def get_artifact(call: Call, arguments: args.GetArtifact) -> Answer:
    artifact, step_id = await find_artifact(call.client, arguments.job_id, arguments.artifact_id)
    if not artifact.mime_type.startswith("image/") or artifact.bytes > LARGEST_SHOWN:
        path = f"/v1/jobs/{arguments.job_id}/artifacts/{artifact.artifact_id}"
        note = f"Only images of up to {LARGEST_SHOWN} bytes are shown. The HTTP API of the daemon has it: GET {path}"
        link = ResourceLink(type="resource_link", name=artifact.artifact_id, uri=artifact.uri)
        return Answer(output=views.ArtifactAnswer(artifact=artifact, step_id=step_id, note=note), content=(link,))
    data = await call.client.get_artifact(arguments.job_id, arguments.artifact_id)
    image = ImageContent(type="image", data=base64.b64encode(data).decode(), mime_type=artifact.mime_type)
    return Answer(output=views.ArtifactAnswer(artifact=artifact, step_id=step_id), content=(image,))


async def _request_of(call: Call, arguments: args.SubmitJob) -> dict[str, Any]:
    """The body of POST /v1/jobs; whether it makes sense is for the daemon to say."""
    return {
        "pipeline_type": arguments.pipeline_type or None,
        "pipeline": arguments.pipeline or None,
        "input": await _input_of(call, arguments.sources, arguments.options),
        "labels": arguments.labels,
        "timeout_s": arguments.timeout_s,
        "dry_run": arguments.dry_run,
    }


async def _input_of(call: Call, sources: list[args.SourceArgument], options: dict[str, Any]) -> dict[str, Any]:
    given = [await _source_of(call, source, f"sources[{index}]") for index, source in enumerate(sources)]
    return {"sources": given, "options": options}


async def _source_of(call: Call, source: args.SourceArgument, path: str) -> dict[str, Any]:
    if sum(map(bool, (source.content, source.content_base64, source.path))) > 1:
        raise InvalidRequestError([Problem(path, "has more than one of content, content_base64 and path")])
    common = {"kind": source.kind, "label": source.label or Path(source.path).name}
    if source.content_base64:
        return {**common, "content_base64": source.content_base64}
    if not source.path:
        return {**common, "content": source.content}
    data = await call.files.read(source.path, path=f"{path}.path")
    # As on the command line: NUL bytes tell bytes from a text, in which a few wrong bytes do no harm.
    if b"\0" in data:
        return {**common, "content_base64": base64.b64encode(data).decode()}
    return {**common, "content": data.decode("utf-8", "replace")}


TOOLS: tuple[Tool[Any], ...] = (
    Tool(
        title="Run a pipeline",
        description=(
            "Run a pipeline on some input, wait for its end, and get what it made: the items of the steps that export "
            "theirs. The steps, their state and the error, if there is one, come too. Give either pipeline_type (see "
            "list_pipelines) or a definition of your own as pipeline. For jobs of more than a minute take submit_job. "
            "Models that a pipeline calls may cost money."
        ),
        arguments=args.RunPipeline,
        output=views.JobAnswer,
        annotations=STARTS,
        function=run_pipeline,
    ),
    Tool(
        title="Submit a job",
        description=(
            "Start a pipeline as run_pipeline does, and come back at once with the job's id. The job runs in the "
            "daemon, whatever becomes of this session; get_job tells how far it is and waits for it."
        ),
        arguments=args.SubmitJob,
        output=views.StateAnswer,
        annotations=STARTS,
        function=submit_job,
    ),
    Tool(
        title="Get a job",
        description=(
            "The state of a job: its steps, its error, what it consumed; and the items of its result, when it has one. "
            "With wait_s it waits for the end of a job that still runs."
        ),
        arguments=args.GetJob,
        output=views.JobAnswer,
        annotations=READS,
        function=get_job,
    ),
    Tool(
        title="Page through a result",
        description="Items of a finished job's result that did not fit into the job: more of them, or more of one text.",
        arguments=args.GetItems,
        output=views.ItemsAnswer,
        annotations=READS,
        function=get_items,
    ),
    Tool(
        title="List jobs",
        description="The jobs of the daemon, newest first, without their steps and results.",
        arguments=args.ListJobs,
        output=views.JobsAnswer,
        annotations=READS,
        function=list_jobs,
    ),
    Tool(
        title="Cancel a job",
        description="Stop a job that is queued or running, for good; a finished one stays as it is.",
        arguments=args.CancelJob,
        output=views.StateAnswer,
        annotations=ENDS,
        function=cancel_job,
    ),
    Tool(
        title="Run a job again",
        description=(
            "A new job from an old one, of the same input or a new one. reuse_upstream takes over what has succeeded, "
            "so that a failed job goes on where it failed. It comes back at once; get_job waits for the new job."
        ),
        arguments=args.RerunJob,
        output=views.StateAnswer,
        annotations=STARTS,
        function=rerun_job,
    ),
    Tool(
        title="Get a job's events",
        description=(
            "The event log of a job, to see what happened in which order: steps, attempts, retries, errors. "
            "next_after_seq gets the next page; a running job has more of them later."
        ),
        arguments=args.GetJobEvents,
        output=views.EventsAnswer,
        annotations=READS,
        function=get_job_events,
    ),
    Tool(
        title="Get an artifact",
        description="An image that a job has made, by the id in `artifacts` of its item.",
        arguments=args.GetArtifact,
        output=views.ArtifactAnswer,
        annotations=READS,
        function=get_artifact,
    ),
)
