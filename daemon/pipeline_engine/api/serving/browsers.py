"""The headers by which browsers know what other sites may do with an answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline_engine.api.serving.asgi import Send

HeaderList = list[tuple[bytes, bytes]]

#: For every answer that does not say otherwise. Nothing of ours is a page, but for the files of /ui/, which have a
#: policy of their own: so nothing may run, be framed, be embedded, be taken for another type, or stay in a cache.
PROTECTION: Mapping[bytes, bytes] = {
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}

METHODS = b"GET, HEAD, POST, PUT, DELETE"
REQUEST_HEADERS = b"Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID"
ANSWER_HEADERS = b"ETag, Location, Retry-After, WWW-Authenticate"
PREFLIGHT_AGE_S = 600  # a browser may remember so long what it may ask


def sharing_headers(origin: bytes | None) -> HeaderList:
    """What lets the pages of an allowed origin read an answer; None is a request of nobody that is allowed.

    See https://fetch.spec.whatwg.org/#http-cors-protocol. There are no cookies, so there are no credentials to allow.
    """
    if origin is None:
        return [(b"vary", b"Origin")]
    return [
        (b"vary", b"Origin"),
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", ANSWER_HEADERS),
    ]


def preflight_headers(*, asks_for_private_network: bool) -> HeaderList:
    """What a page of an allowed origin may send, besides `sharing_headers`."""
    headers = [
        (b"access-control-allow-methods", METHODS),
        (b"access-control-allow-headers", REQUEST_HEADERS),
        (b"access-control-max-age", b"%d" % PREFLIGHT_AGE_S),
    ]
    if asks_for_private_network:  # a page from the network that calls a daemon on this machine
        headers.append((b"access-control-allow-private-network", b"true"))
    return headers


def sending_with(send: Send, headers: Iterable[tuple[bytes, bytes]]) -> Send:
    """An ASGI `send` that completes the head of an answer with PROTECTION and these headers."""

    async def send_complete(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            given: HeaderList = list(message["headers"])
            names = {name.lower() for name, _ in given}
            missing = [header for header in PROTECTION.items() if header[0] not in names]
            message = {**message, "headers": [*given, *missing, *headers]}
        await send(message)

    return send_complete
