"""The web framework's side of the API: finds the route of a request and turns our answers into its responses."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from pipeline_engine.api.calls import Answer, Call, Route
from pipeline_engine.api.context import Api
from pipeline_engine.api.errors import answer_for, answer_for_status, error_answer
from pipeline_engine.api.requests import decode_body, read_json, read_query
from pipeline_engine.api.routes import ROUTES
from pipeline_engine.api.serving.asgi import AsgiApp
from pipeline_engine.errors import PipelineEngineError

log = logging.getLogger(__name__)


def create_app(api: Api) -> AsgiApp:
    """The API as an ASGI app; the Guard stands in front of it."""
    app = QuartTrio("pipeline_engine", static_folder=None)
    app.config.update(
        # Streams and sync jobs take as long as they take; slow clients are the server's business.
        RESPONSE_TIMEOUT=None,
        BODY_TIMEOUT=None,
        MAX_CONTENT_LENGTH=api.config.limits.max_body_bytes,
        PROVIDE_AUTOMATIC_OPTIONS=False,
    )
    app.url_map.merge_slashes = False  # it would redirect, in HTML
    app.register_error_handler(HTTPException, _refuse)
    for route in ROUTES:
        rule = re.sub(r"\{(\w+)\}", r"<\1>", route.path)
        endpoint = f"{route.method} {route.path}"
        app.add_url_rule(rule, endpoint=endpoint, view_func=_view(api, route), methods=[route.method])
    return app


def _view(api: Api, route: Route) -> Callable[..., Awaitable[Response]]:
    async def view(**path_values: str) -> Response:
        try:
            return _response(await _answer(api, route, path_values))
        except HTTPException:
            raise
        except PipelineEngineError as exc:
            return _response(answer_for(exc))
        except Exception:
            # The last barrier: a fault of ours becomes an answer that tells nothing of our insides.
            log.exception("internal error in %s %s", route.method, request.path)
            return _response(error_answer("internal", "internal error"))

    return view


async def _answer(api: Api, route: Route, path_values: dict[str, str]) -> Answer:
    if route.is_stream and request.method == "HEAD":
        return answer_for_status(405, allow="GET")
    if route.needs_engine:
        _ = api.ready_local  # before anything else is wrong with the request, the daemon is starting
    query = read_query(request.args.items(multi=True), route.query)
    data = body = None
    if route.body is not None:
        data = await request.get_data(cache=False, as_text=False, parse_form_data=False)
        body = await read_json(data, optional=route.body_optional, limiter=api.workers)
        if route.decodes_body:
            body = decode_body(body, route.body)
    call = Call(
        path=request.path,
        path_values=path_values,
        headers={name.lower(): value for name, value in request.headers.items()},
        query=query,
        body=body,
        data=data or b"",
    )
    return await route.handler(api, call)


async def _refuse(error: HTTPException) -> Response:
    allow = None
    if isinstance(error, MethodNotAllowed):
        allow = ", ".join(sorted(error.valid_methods or ()))
    return _response(answer_for_status(error.code or 500, allow=allow))


def _response(answer: Answer) -> Response:
    response = Response(
        answer.body, status=answer.status, content_type=answer.content_type, headers=dict(answer.headers)
    )
    if answer.content_type is None:
        del response.headers["Content-Type"]  # the framework has a default of its own
        if answer.status in (204, 304):
            response.headers.pop("Content-Length", None)
    return response
