"""From a request to its answer: what the route wants of it, the handler, and errors as answers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline_engine.api.calls import Answer, Call, Route
from pipeline_engine.api.context import Api
from pipeline_engine.api.errors import answer_for, error_answer
from pipeline_engine.api.requests import decode_body, read_json, read_query
from pipeline_engine.errors import PipelineEngineError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request for a route, however it came in: `path_values` fill the variables of the route's path.

    The names of `headers` are in lower case; `data` is the body of a route that has one.
    """

    method: str
    path: str
    path_values: Mapping[str, str]
    headers: Mapping[str, str]
    query: Iterable[tuple[str, str]] = ()
    data: bytes = b""


async def answer_request(api: Api, route: Route, request: Request) -> Answer:
    """The route's answer; whatever goes wrong is an answer too."""
    try:
        return await _handle(api, route, request)
    except PipelineEngineError as exc:
        return answer_for(exc)
    except Exception:
        # The last barrier: a fault of ours becomes an answer that tells nothing of our insides.
        log.exception("internal error in %s %s", route.method, request.path)
        return error_answer("internal", "internal error")


async def _handle(api: Api, route: Route, request: Request) -> Answer:
    if route.needs_engine:
        _ = api.ready_local  # before anything else is wrong with the request, the daemon is starting
    query = read_query(request.query, route.query)
    body = None
    if route.body is not None:
        body = await read_json(request.data, optional=route.body_optional, limiter=api.workers)
        if route.decodes_body:
            body = decode_body(body, route.body)
    call = Call(
        path=request.path,
        path_values=request.path_values,
        headers=request.headers,
        query=query,
        body=body,
        data=request.data,
    )
    return await route.handler(api, call)
