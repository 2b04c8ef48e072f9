"""A job's events as NDJSON, as server-sent events, and in pages."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

import msgspec
import trio

from pipeline_engine.api.calls import Answer, Call, Route, json_answer
from pipeline_engine.api.context import Api
from pipeline_engine.api.errors import STATUSES
from pipeline_engine.api.wire import MAX_SEQ, EventsPage, EventsQuery, StreamQuery
from pipeline_engine.decoding import to_json
from pipeline_engine.engine import Engine
from pipeline_engine.errors import InvalidRequestError, PipelineEngineError, Problem, UnavailableError
from pipeline_engine.models import JobId, now_rfc3339

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
EVENT_STREAMS = (NDJSON, SSE)
PAGE_BYTES = 1024 * 1024  # a page of events ends with the batch that passes this

_HEAD = re.compile(rb'\{"seq":([0-9]+),"event":"([a-z_]+)"')


@dataclass(frozen=True, slots=True)
class _Format:
    """How events go over the wire; `frame` makes one piece of a batch of lines."""

    content_type: str
    frame: Callable[[list[bytes]], bytes]
    heartbeat: Callable[[JobId], bytes]
    error: Callable[[JobId, PipelineEngineError], bytes]


async def follow_job(api: Api, call: Call) -> Answer:
    accept = call.headers.get("accept", "")
    after_seq = call.query.after_seq
    # A browser that reconnects repeats its first address; where it really stopped stands in this header.
    last_id = call.headers.get("last-event-id")
    if last_id and _chosen_format(accept) is _SSE:
        after_seq = _read_last_id(last_id)
    return await stream_answer(api, JobId(call.path_values["id"]), after_seq=after_seq, accept=accept)


async def stream_answer(api: Api, job_id: JobId, *, after_seq: int, accept: str) -> Answer:
    """The events of a job after `after_seq`, to its end. Raises NotFoundError and GoneError."""
    async with api.engine.follow(job_id, after_seq=after_seq):
        pass  # what is wrong is told before the stream begins
    chosen = _chosen_format(accept)
    lines = _follow(api.engine, job_id, after_seq=after_seq, chosen=chosen, heartbeat_s=api.config.http.heartbeat_s)
    return Answer(
        content_type=chosen.content_type,
        body=lines,
        headers={"X-Accel-Buffering": "no"},
    )


async def _follow(
    engine: Engine, job_id: JobId, *, after_seq: int, chosen: _Format, heartbeat_s: float
) -> AsyncGenerator[bytes, None]:
    # The subscription is made here and not by the handler: a response that is never sent would keep it for ever.
    try:
        async with engine.follow(job_id, after_seq=after_seq) as follower:
            while True:
                with trio.move_on_after(heartbeat_s) as silence:
                    lines = await follower.next_batch()
                if silence.cancelled_caught:
                    yield chosen.heartbeat(job_id)
                elif lines is None:
                    return
                else:
                    frame = chosen.frame(lines)
                    del lines  # of many followers that do not read, each would keep them beside their copy
                    yield frame
    except UnavailableError:
        return  # the daemon stops: the follower sees that stream_finished is missing, and comes back
    except PipelineEngineError as exc:
        yield chosen.error(job_id, exc)


async def list_events(api: Api, call: Call) -> Answer:
    query: EventsQuery = call.query
    lines: list[bytes] = []
    async with api.engine.follow(JobId(call.path_values["id"]), after_seq=query.after_seq) as follower:
        size = 0
        while follower.seq < follower.last_seq and len(lines) < query.limit and size < PAGE_BYTES:
            batch = await follower.next_batch() or []
            lines += batch
            size += sum(map(len, batch))
        if not lines:
            with trio.move_on_after(query.wait_s):
                lines = await follower.next_batch() or []
        last_seq = follower.last_seq
    return json_answer({"events": [msgspec.Raw(line) for line in lines[: query.limit]], "last_seq": last_seq})


def _chosen_format(accept: str) -> _Format:
    ranges = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return _SSE if SSE in ranges and NDJSON not in ranges else _NDJSON


def _read_last_id(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_SEQ)):
        return int(text)
    raise InvalidRequestError([Problem("Last-Event-ID", f"{text[:40]!r} is not the seq of an event")])


def _sse_frame(lines: list[bytes]) -> bytes:
    pieces = []
    for line in lines:
        head = _HEAD.match(line)
        assert head is not None
        pieces.append(b"id: %b\nevent: %b\ndata: %b\n" % (head[1], head[2], line))
    return b"".join(pieces)


def _unnumbered(event: str, job_id: JobId, data: object) -> bytes:
    return to_json({"event": event, "job_id": job_id, "ts": now_rfc3339(), "data": data}) + b"\n"


def _error_line(job_id: JobId, error: PipelineEngineError) -> bytes:
    code = error.code if error.code in STATUSES else "internal"
    return _unnumbered("error", job_id, {"code": code, "message": error.message})


_NDJSON = _Format(
    content_type=NDJSON,
    frame=b"".join,
    heartbeat=lambda job_id: _unnumbered("heartbeat", job_id, {}),
    error=_error_line,
)
_SSE = _Format(
    content_type=SSE,
    frame=_sse_frame,
    heartbeat=lambda _: b": heartbeat\n\n",
    error=lambda job_id, error: b"event: error\ndata: %b\n" % _error_line(job_id, error),
)

ROUTES = (
    Route(
        method="GET",
        path="/v1/jobs/{id}/stream",
        handler=follow_job,
        tag="events",
        summary="Follow a job: its events from the log, then live, until stream_finished.",
        description="One event a line, as NDJSON; as server-sent events with Accept: text/event-stream. A stream that ends "
        "without stream_finished was cut: ask again with the last seq as after_seq, and get each further event once. "
        "Lines of heartbeat come after 15 s of silence.",
        query=StreamQuery,
        headers={"Last-Event-ID": "For server-sent events, takes the place of after_seq."},
        answers={200: EVENT_STREAMS},
        errors=("not_found", "gone"),
        is_stream=True,
    ),
    Route(
        method="GET",
        path="/v1/jobs/{id}/events",
        handler=list_events,
        tag="events",
        summary="A page of a job's events; waits up to wait_s seconds for the first.",
        query=EventsQuery,
        answers={200: EventsPage},
        errors=("not_found", "gone"),
    ),
)
