"""The calls that submit, list, show, cancel, rerun and delete jobs."""

from __future__ import annotations

from pipeline_engine.api.calls import Answer, Call, Route, json_answer
from pipeline_engine.api.chunks import read_chunks
from pipeline_engine.api.context import Api
from pipeline_engine.api.streams import EVENT_STREAMS, stream_answer
from pipeline_engine.api.wire import CancelRequest, CheckpointList, JobAnswer, JobList, JobQuery, JobsQuery, SubmitQuery
from pipeline_engine.errors import InvalidRequestError, Problem, UnavailableError
from pipeline_engine.idempotency import IdempotencyKey
from pipeline_engine.models import Job, JobId, JobMode, JobRequest, RerunRequest
from pipeline_engine.store.base import JobFilter
from pipeline_engine.tracing import read_trace_headers

MAX_KEY_LENGTH = 255
MAX_CURSOR_DIGITS = 18


async def create_job(api: Api, call: Call) -> Answer:
    engine = api.engine
    key = _idempotency_key(call)
    request: JobRequest = call.body
    if request.pipeline is not None:
        problems = api.ready_local.checker.check_sent(request.pipeline, path="pipeline")
        if problems:
            raise InvalidRequestError(problems)
    job = await engine.submit(request, idempotency=key, trace=read_trace_headers(call.headers))
    if call.query.stream:
        return await stream_answer(api, job.id, after_seq=0, accept=call.headers.get("accept", ""))
    if request.mode is JobMode.SYNC:
        job = await engine.wait(job.id)
        if not job.status.is_final:
            words = f"the daemon is stopping; job {job.id} goes on after its next start"
            raise UnavailableError(words, details={"job_id": job.id})
        return json_answer({"job": job}, headers=_location(job))
    return json_answer({"job": job}, status=202, headers=_location(job))


async def rerun_job(api: Api, call: Call) -> Answer:
    trace = read_trace_headers(call.headers)
    job = await api.engine.rerun(_job_id(call), call.body, idempotency=_idempotency_key(call), trace=trace)
    return json_answer({"job": job}, status=202, headers=_location(job))


async def list_jobs(api: Api, call: Call) -> Answer:
    query: JobsQuery = call.query
    wanted = JobFilter(
        status=query.status,
        pipeline_type=query.pipeline_type,
        labels=_labels(query.label),
        before=_read_cursor(query.cursor),
        limit=query.limit,
    )
    jobs, before = await api.engine.list_jobs(wanted)
    return json_answer(JobList(jobs, None if before is None else str(before)))


async def get_job(api: Api, call: Call) -> Answer:
    job = await api.engine.get_job(_job_id(call))
    if "chunks" in call.query.include:
        access = api.ready_local.access
        chunks = await access.call(read_chunks, access.store, job.id)
        for execution in job.step_executions or ():
            execution.chunks = chunks.get(execution.step_id, [])
    return json_answer({"job": job})


async def list_checkpoints(api: Api, call: Call) -> Answer:
    return json_answer({"checkpoints": await api.engine.checkpoints(_job_id(call))})


async def cancel_job(api: Api, call: Call) -> Answer:
    job = await api.engine.cancel(_job_id(call), call.body.reason)
    if not job.status.is_final:
        raise UnavailableError(f"the daemon is stopping; job {job.id} is cancelled after its next start")
    return json_answer({"job": job})


async def delete_job(api: Api, call: Call) -> Answer:
    await api.engine.delete(_job_id(call))
    return Answer(status=204)


def _job_id(call: Call) -> JobId:
    return JobId(call.path_values["id"])


def _location(job: Job) -> dict[str, str]:
    return {"Location": f"/v1/jobs/{job.id}"}


def _idempotency_key(call: Call) -> IdempotencyKey | None:
    key = call.headers.get("idempotency-key")
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise InvalidRequestError([Problem("Idempotency-Key", f"has 1 to {MAX_KEY_LENGTH} characters")])
    # The path is part of what was asked for: the same empty body reruns another job at another address.
    return IdempotencyKey(key, call.path.encode() + b"\n" + call.data)


def _labels(given: list[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for text in given:
        key, separator, value = text.partition(":")
        if not separator:
            raise InvalidRequestError([Problem("label", f"{text!r} is not KEY:VALUE")])
        if labels.setdefault(key, value) != value:
            raise InvalidRequestError([Problem("label", f"{key!r} is given with two values")])
    return labels


def _read_cursor(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= MAX_CURSOR_DIGITS):
        raise InvalidRequestError([Problem("cursor", "is not the next_cursor of a page")])
    return int(cursor)


_KEY_HEADER = {"Idempotency-Key": "With the same key and body, the answer is the same job, for 24 hours."}
_NEW_WORK = ("conflict", "gone", "unavailable", "store_full", "too_many_requests")

ROUTES = (
    Route(
        method="POST",
        path="/v1/jobs",
        handler=create_job,
        tag="jobs",
        summary="Submit a job; with mode sync wait for its end, with stream=true follow it.",
        description="With mode async the answer is the queued job, and its address in Location. With mode sync it comes when the "
        "job is finished, which may take as long as the job; the job goes on when the client leaves. With stream=true, "
        "whatever the mode, it is the stream of events.",
        query=SubmitQuery,
        headers=_KEY_HEADER,
        body=JobRequest,
        answers={200: (JobAnswer, *EVENT_STREAMS), 202: JobAnswer},
        errors=("unknown_pipeline", "not_found", *_NEW_WORK),
    ),
    Route(
        method="GET",
        path="/v1/jobs",
        handler=list_jobs,
        tag="jobs",
        summary="List jobs without input, result and steps, newest first.",
        query=JobsQuery,
        answers={200: JobList},
    ),
    Route(
        method="GET",
        path="/v1/jobs/{id}",
        handler=get_job,
        tag="jobs",
        summary="Show a job with its input, its steps and, once it is finished, its result.",
        query=JobQuery,
        answers={200: JobAnswer},
        errors=("not_found",),
    ),
    Route(
        method="DELETE",
        path="/v1/jobs/{id}",
        handler=delete_job,
        tag="jobs",
        summary="Delete a finished job and all that belongs to it.",
        answers={204: None},
        errors=("not_found", "conflict", "store_full"),
    ),
    Route(
        method="GET",
        path="/v1/jobs/{id}/checkpoints",
        handler=list_checkpoints,
        tag="jobs",
        summary="The finished items of a job.",
        answers={200: CheckpointList},
        errors=("not_found",),
    ),
    Route(
        method="POST",
        path="/v1/jobs/{id}/cancel",
        handler=cancel_job,
        tag="jobs",
        summary="Cancel a job; the answer comes once it is over. A finished job stays as it is.",
        body=CancelRequest,
        body_optional=True,
        answers={200: JobAnswer},
        errors=("not_found",),
    ),
    Route(
        method="POST",
        path="/v1/jobs/{id}/rerun",
        handler=rerun_job,
        tag="jobs",
        summary="Run a job again, from a step on or what failed of it.",
        description="A new job with the input, labels, priority, timeout and limits of its parent. With reuse_upstream what "
        "has succeeded is taken over instead of run again. The parent may still be running.",
        headers=_KEY_HEADER,
        body=RerunRequest,
        body_optional=True,
        answers={202: JobAnswer},
        errors=("unknown_pipeline", "not_found", *_NEW_WORK),
    ),
)
