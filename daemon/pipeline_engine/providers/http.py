"""One JSON request to a model server and its answer: whole, or in lines as they arrive."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import msgspec
import trio

import pipeline_engine
from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.providers.addresses import join_path, without_query
from pipeline_engine.providers.base import Target
from pipeline_engine.providers.failures import failure, failure_inside, raw_detail
from pipeline_engine.providers.framing import LineSplitter, decode_first_json
from pipeline_engine.providers.transport import HttpClient, RawAnswer

MAX_BODY_SIZE = 128 * 1024 * 1024  # bytes: of an answer that is read whole
MAX_ERROR_BODY_SIZE = 64 * 1024  # bytes
ERROR_BODY_TIMEOUT = 5.0  # seconds: the status says enough
DRAIN_TIMEOUT = 0.2  # seconds: a new connection costs less than a longer wait
_BLANK = b" \t\r\n\xef\xbb\xbf"  # a byte order mark counts as one


def post_json(
    client: HttpClient, target: Target, path: str, body: Mapping[str, Any], *, accept: str = "application/json"
) -> AbstractAsyncContextManager[Answer]:
    """Send `body` to the target's address plus `path`. Raises ProviderError unless the answer's status is 2xx."""
    return _send(client, "POST", target, join_path(target.base_uri, path), accept, _encoded(body))


def get(client: HttpClient, target: Target, url: str) -> AbstractAsyncContextManager[Answer]:
    """Fetch `url`, which is of the target's origin if the target holds secrets."""
    return _send(client, "GET", target, url, "*/*", b"")


@asynccontextmanager
async def _send(
    client: HttpClient, method: str, target: Target, url: str, accept: str, content: bytes
) -> AsyncIterator[Answer]:
    headers = _headers(target, accept, has_body=bool(content))
    async with client.send(
        method, url, headers=headers, content=content, connect_timeout_s=target.connect_timeout_s
    ) as raw:
        answer = Answer(raw, target)
        if not 200 <= raw.status < 300:
            raise await answer.failure()
        encoding = raw.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise answer.protocol_error(f"is encoded as {encoding}, which was not asked for")
        yield answer


class Answer:
    """An answer that is being read."""

    def __init__(self, raw: RawAnswer, target: Target) -> None:
        self.headers = raw.headers
        self._raw = raw
        self._target = target
        self._peeked: list[bytes] = []
        self._splitter = LineSplitter()
        self._ended = False

    async def receive(self) -> bytes:
        """The next piece of the body, as it arrived; empty at its end."""
        return self._peeked.pop(0) if self._peeked else await self._raw.receive()

    async def receive_lines(self) -> list[bytes] | None:
        """The lines that the next piece of the body completes, which may be none; None at its end."""
        if self._ended:
            return None
        if piece := await self.receive():
            return self._splitter.feed(piece)
        self._ended = True
        rest = self._splitter.rest()
        return [rest] if rest else None

    async def first_byte(self) -> bytes:
        """The first byte that is not white space, without consuming it; empty if there is none."""
        while piece := await self._raw.receive():
            if start := piece.lstrip(_BLANK):
                self._peeked.append(start)
                return start[:1]
        return b""

    async def read(self, limit: int = MAX_BODY_SIZE) -> bytes:
        """The whole body. Raises ProviderError if it exceeds `limit` bytes."""
        body = bytearray()
        while piece := await self.receive():
            body += piece
            if len(body) > limit:
                raise self.protocol_error(f"exceeds {limit} bytes")
        return bytes(body)

    async def json(self) -> dict[str, Any]:
        """The body as a JSON object; what may follow it (an end mark of a stream) is ignored."""
        body = await self.read()
        if not body.strip():
            raise ProviderError(ErrorCode.PROVIDER_EMPTY, f"the answer of {self._address} is empty", retryable=True)
        try:
            value = decode_first_json(body)
        except ValueError as exc:
            raise self.protocol_error("is not JSON", raw=body) from exc
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, dict) and first.get("error"):
            raise self.error_inside(first, raw=body)
        if not isinstance(value, dict):
            raise self.protocol_error("is not a JSON object", raw=body)
        return value

    async def drain(self) -> None:
        """Read what little may follow the end mark, so that the connection can be used again."""
        if self._raw.is_complete():
            return
        with trio.move_on_after(within_time_left(DRAIN_TIMEOUT)), suppress(ProviderError):
            while await self._raw.receive():
                pass

    async def failure(self) -> ProviderError:
        """The error that this answer is, by its status and what can be had of its body."""
        body = bytearray()
        with trio.move_on_after(within_time_left(ERROR_BODY_TIMEOUT)), suppress(ProviderError):
            while len(body) < MAX_ERROR_BODY_SIZE and (piece := await self._raw.receive()):
                body += piece
        return failure(
            self._target, status=self._raw.status, headers=self.headers, body=bytes(body), now=datetime.now(UTC)
        )

    def error_inside(self, value: Any, *, raw: bytes) -> ProviderError:
        """The error for an error object that came in the body."""
        return failure_inside(self._target, value, raw=raw, headers=self.headers, now=datetime.now(UTC))

    def protocol_error(self, problem: str, *, raw: bytes = b"") -> ProviderError:
        """The error for an answer that the protocol does not allow."""
        message = f"the answer of {self._address} {problem}"
        if "text/html" in self.headers.get("content-type", ""):
            message += " but a web page: is base_uri the address of the API?"
        text = raw_detail(raw[: 4 * MAX_ERROR_BODY_SIZE].decode(errors="replace"), self._target)
        return ProviderError(ErrorCode.PROVIDER_PROTOCOL, message, details={"raw": text} if text else None)

    def truncated(self) -> ProviderError:
        """The error for an answer that ended before it was whole."""
        message = f"the answer of {self._address} ended without a finish reason and without the end mark"
        return ProviderError(ErrorCode.PROVIDER_TRUNCATED, message, retryable=True)

    @property
    def _address(self) -> str:
        return without_query(self._target.base_uri)


def within_time_left(seconds: float) -> float:
    """So many seconds, or half of those that are left, for a wait that must not void what is there already: it ends
    before a timeout of the call, the step or the job does.
    """
    left = trio.current_effective_deadline() - trio.current_time()
    return max(0.0, min(seconds, left / 2))


def _headers(target: Target, accept: str, *, has_body: bool) -> dict[str, str]:
    headers = {
        "accept": accept,
        # What arrives must be readable at once; a decompressor would hold tokens back.
        "accept-encoding": "identity",
        "user-agent": f"pipeline-engine/{pipeline_engine.__version__}",
    }
    if has_body:
        headers["content-type"] = "application/json"
    if target.api_key is not None and target.api_key.reveal():
        headers["authorization"] = f"Bearer {target.api_key.reveal()}"
    return headers | {name.lower(): value.reveal() for name, value in target.headers.items()}


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(body)
    except (TypeError, ValueError) as exc:
        raise ProviderError(ErrorCode.PROVIDER_ERROR, f"the request cannot be written as JSON ({exc})") from exc
