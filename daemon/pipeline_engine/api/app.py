"""The web framework's side of the API: finds the route of a request and turns our answers into its responses."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from pipeline_engine.api import jobs, streams, web_page
from pipeline_engine.api.calls import Answer, Route
from pipeline_engine.api.context import Api
from pipeline_engine.api.direct import DirectCalls
from pipeline_engine.api.dispatch import Request, answer_request
from pipeline_engine.api.errors import answer_for_status
from pipeline_engine.api.routes import ROUTES
from pipeline_engine.api.serving.asgi import AsgiApp


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
    for route in (*ROUTES, *web_page.ROUTES):
        rule = re.sub(r"\{(\w+)\}", r"<\1>", route.path)
        endpoint = f"{route.method} {route.path}"
        app.add_url_rule(rule, endpoint=endpoint, view_func=_view(api, route), methods=[route.method])
        if route.is_stream:
            _take_no_head(app, endpoint)
    return DirectCalls(app, api, [*jobs.ROUTES, *streams.ROUTES])


def _take_no_head(app: QuartTrio, endpoint: str) -> None:
    """The router adds HEAD to each GET; a stream would have to be read to its end for its length."""
    for rule in app.url_map.iter_rules(endpoint):
        if rule.methods is not None:
            rule.methods.discard("HEAD")


def _view(api: Api, route: Route) -> Callable[..., Awaitable[Response]]:
    async def view(**path_values: str) -> Response:
        data = b""
        if route.body is not None:
            data = await request.get_data(cache=False, as_text=False, parse_form_data=False)
        seen = Request(
            method=request.method,
            path=request.path,
            path_values=path_values,
            headers={name.lower(): value for name, value in request.headers.items()},
            query=request.args.items(multi=True),
            data=data,
        )
        return _response(await answer_request(api, route, seen))

    return view


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
