"""The calls that jobs consist of, served without the web framework.

A framework's request, context and response objects cost more than all that the handlers of these few calls do. What
is not one of these calls, or is one in a way that is refused (HEAD, a wrong method), goes on to the framework.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from urllib.parse import parse_qsl

from pipeline_engine.api.calls import Answer, Route
from pipeline_engine.api.context import Api
from pipeline_engine.api.dispatch import Request, answer_request
from pipeline_engine.api.errors import answer_for_status
from pipeline_engine.api.serving.asgi import AsgiApp, Receive, Scope, Send
from pipeline_engine.api.serving.exchange import DISCONNECT_SCOPE


class DirectCalls:
    """An ASGI app round another, which gets every request that is for none of the routes."""

    def __init__(self, app: AsgiApp, api: Api, routes: Iterable[Route]) -> None:
        self._app = app
        self._api = api
        self._routes: dict[str, list[tuple[re.Pattern[str], Route]]] = {}
        for route in routes:
            pattern = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.path))
            self._routes.setdefault(route.method, []).append((pattern, route))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for pattern, route in self._routes.get(scope["method"], ()):
                if (found := pattern.fullmatch(scope["path"])) is not None:
                    await self._serve(route, found.groupdict(), scope, receive, send)
                    return
        await self._app(scope, receive, send)

    async def _serve(
        self, route: Route, path_values: Mapping[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        data = b""
        if route.body is not None:
            body = await _read_body(receive, self._api.config.limits.max_body_bytes)
            if body is None:
                await _send(answer_for_status(413), send)
                return
            data = body
        query = scope["query_string"]
        request = Request(
            method=scope["method"],
            path=scope["path"],
            path_values=path_values,
            headers={name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]},
            query=parse_qsl(query.decode("latin-1"), keep_blank_values=True) if query else (),
            data=data,
        )
        with scope["extensions"][DISCONNECT_SCOPE]():
            await _send(await answer_request(self._api, route, request), send)


async def _read_body(receive: Receive, max_bytes: int) -> bytes | None:
    """The body of a request, as far as the client sends it; None if it is too large."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > max_bytes:
            return None
        if not message.get("more_body", False):  # or the client has left, which the next `receive` says again
            return bytes(body)


async def _send(answer: Answer, send: Send) -> None:
    headers = {name.lower(): value for name, value in answer.headers.items()}
    if answer.content_type is not None:
        headers["content-type"] = answer.content_type
    if isinstance(answer.body, bytes) and answer.status != 204:
        headers["content-length"] = str(len(answer.body))
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    if isinstance(answer.body, bytes):
        await send({"type": "http.response.body", "body": answer.body})
        return
    async with aclosing(answer.body) as pieces:
        async for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
