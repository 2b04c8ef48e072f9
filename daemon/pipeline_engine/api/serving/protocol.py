"""HTTP/1.1 as Hypercorn speaks it, hardened. Besides connection.py nothing here knows Hypercorn.

Hypercorn is pinned to one release, since this leans on its internals. Its own trio server lets one bad request end the
process (h2c and websocket upgrades, prior-knowledge HTTP/2), has no limit for a write or for a slow sender, stops
reading (so that it misses a disconnect) when more bytes follow a request, and cannot end while a reader is stuck. What
it parses and how it frames answers is sound. So `HTTPStream` and `H11Protocol` stay, without the upgrades; the
server round them, which is where all of that sits, is replaced.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Request, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Response as ResponseStart
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, H11SendableEvent, TaskGroup

from pipeline_engine.api.serving.asgi import AsgiApp, Scope
from pipeline_engine.api.serving.exchange import DISCONNECT_SCOPE, Exchange
from pipeline_engine.api.serving.plain_heads import PlainHead, plain_head
from pipeline_engine.api.serving.plain_requests import PlainRequest, plain_request
from pipeline_engine.api.serving.refusals import Refusal
from pipeline_engine.api.serving.settings import ServeSettings

MAX_JOINED = 16 * 1024  # bytes; of more than that, clients that do not read would each hold a second copy
PIECES_IN_A_TURN = 64  # of a body that is there already
PLAIN_EVENTS = 3  # of h11 for a plain request: its head, perhaps a body, which is there already, and its end
HTTP_VERSIONS = frozenset({b"1.0", b"1.1"})


class Service:
    """What all connections of one server share."""

    def __init__(self, app: AsgiApp, settings: ServeSettings) -> None:
        self.app = app
        self.settings = settings
        self.config = Config()
        self.config.h11_max_incomplete_size = settings.max_head_bytes
        self.config.include_server_header = False
        self.config.accesslog = self.config.errorlog = None  # Hypercorn would install handlers of its own
        self.context = WorkerContext(None)

    async def stop(self) -> None:
        """From now on a connection closes when its response is complete."""
        await self.context.terminated.set()


class HttpProtocol(H11Protocol):
    """Hypercorn's HTTP/1.1 without upgrades, with limits, with answers in JSON, and never waiting for the response."""

    connection: h11.Connection

    def __init__(
        self,
        service: Service,
        *,
        requests: trio.Nursery,
        client: tuple[str, int] | None,
        server: tuple[str, int | None] | None,
        send: Callable[[Event], Awaitable[None]],
        write: Callable[[Sequence[bytes]], Awaitable[None]],
    ) -> None:
        super().__init__(
            cast(AppWrapper, service.app),  # only handed through, to our own _Requests
            service.config,
            service.context,
            cast(TaskGroup, _Requests(requests, self._ask_for_body)),
            ConnectionState({}),
            False,
            client,
            cast("tuple[str, int] | None", server),
            send,
        )
        self.max_body_bytes = service.settings.max_body_bytes
        self.body_bytes = 0
        self.write = write
        self.answered_past_h11 = False
        self._max_head_bytes = service.settings.max_head_bytes
        self._plain: PlainRequest | None = None  # received, and not yet begun
        self._untold = b""  # the request that is under way, as long as h11 has not heard of it
        self._method = b""
        self._held_head = b""

    @property
    def wants_body(self) -> bool:
        return self.stream is not None and self.connection.their_state is h11.SEND_BODY

    @property
    def expects_input(self) -> bool:
        """Whether the client may still be sending: then closing at once would reset the connection."""
        ended = self.connection.their_state in (h11.DONE, h11.MUST_CLOSE, h11.IDLE)
        return not ended or bool(self.connection.trailing_data[0])

    def receive(self, data: bytes) -> None:
        """More bytes of the client, for `process`. A plain request is read without h11, at a tenth of the cost."""
        connection = self.connection
        if self.stream is None and connection.their_state is h11.IDLE and not connection.trailing_data[0]:
            self._plain = plain_request(data, max_head_bytes=self._max_head_bytes, max_body_bytes=self.max_body_bytes)
            if self._plain is not None:
                self._untold = data
                return
        self._tell_h11()
        connection.receive_data(data)

    def _tell_h11(self) -> None:
        """Now that h11 is needed it must hear of the request, so that it knows what may come next."""
        if self._untold:
            self.connection.receive_data(self._untold)
            self._untold = b""
            for _ in range(PLAIN_EVENTS):
                if isinstance(self.connection.next_event(), h11.EndOfMessage):
                    break

    async def process(self) -> None:
        """Handles all that has been received, as far as it can be now."""
        if self._plain is not None:
            await self._start_plain(self._plain)
        pieces = 0
        while True:
            try:
                event = self.connection.next_event()
            except h11.RemoteProtocolError as error:
                status = 431 if error.error_status_hint == 431 else 400
                reason = str(error).partition(":")[0]  # what follows is the input
                await self.refuse(Refusal(status, "invalid_request", f"this is not HTTP/1.1: {reason}"))
                return
            if isinstance(event, h11.Request):
                self._method = event.method
                refusal = self._find_fault(event)
                if refusal is not None:
                    await self.refuse(refusal)
                    return
                version = event.http_version.decode()
                await self._start(event.method, event.target, list(event.headers), version=version)
            elif self.stream is None or not isinstance(event, (h11.Data, h11.EndOfMessage)):
                return  # more bytes, or the end of the response, must come first
            elif isinstance(event, h11.EndOfMessage):
                await self.stream.handle(EndBody(stream_id=STREAM_ID))
            else:
                self.body_bytes += len(event.data)
                if self.body_bytes > self.max_body_bytes:
                    await self.refuse(self._too_large())
                    return
                await self.stream.handle(Body(stream_id=STREAM_ID, data=bytes(event.data)))
                pieces += 1
                if pieces % PIECES_IN_A_TURN == 0:
                    await trio.lowlevel.checkpoint()  # what one read brought may be ten thousand chunks of one byte

    async def refuse(self, refusal: Refusal) -> None:
        """Answers for the app, unless that has begun to, and ends the connection."""
        self._tell_h11()
        has_begun = isinstance(self.stream, HttpStream) and self.stream.is_past_h11
        await self._close_stream()
        if not has_begun and self.connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [*refusal.headers(), *self.config.response_headers("h11")]
            await self._send_h11_event(h11.Response(status_code=refusal.status, headers=headers))
            if self._method != b"HEAD":
                await self._send_h11_event(h11.Data(data=refusal.body()))
            await self._send_h11_event(h11.EndOfMessage())
        await self.send(Closed())

    def _find_fault(self, request: h11.Request) -> Refusal | None:
        if request.http_version not in HTTP_VERSIONS:
            return Refusal(400, "invalid_request", "only HTTP/1.1 is spoken here")
        if request.method == b"CONNECT":
            return Refusal(400, "invalid_request", "this is not a proxy")
        has_length = is_encoded = False
        for name, value in request.headers:
            if name == b"content-length":
                has_length = True
                if int(value) > self.max_body_bytes:
                    return self._too_large()
            is_encoded = is_encoded or name == b"transfer-encoding"
        if has_length and is_encoded:
            # RFC 9112, 6.1: whoever stands between may have read another end of the request than we do.
            return Refusal(400, "invalid_request", "a request has a content-length or a transfer-encoding, not both")
        return None

    def _too_large(self) -> Refusal:
        return Refusal(413, "payload_too_large", f"a body may have {self.max_body_bytes} bytes")

    async def _start_plain(self, request: PlainRequest) -> None:
        self._plain = None
        self._method = request.method
        await self._start(request.method, request.target, request.headers)
        assert self.stream is not None
        if request.body:
            await self.stream.handle(Body(stream_id=STREAM_ID, data=request.body))
        if self.stream is not None:  # else an answer came while the app was behind with the body
            await self.stream.handle(EndBody(stream_id=STREAM_ID))

    async def _start(
        self, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], *, version: str = "1.1"
    ) -> None:
        self.body_bytes = 0
        self.stream = HttpStream(self)
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=headers,
                http_version=version,
                method=method.decode("ascii").upper(),
                raw_path=target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1

    async def _ask_for_body(self) -> None:
        # When the app waits for the body, and not before: a request that is refused by its head keeps its body.
        if self.connection.they_are_waiting_for_100_continue:
            await self._send_h11_event(
                h11.InformationalResponse(status_code=100, headers=self.config.response_headers("h11"))
            )

    def may_pass_h11(self) -> bool:
        """Whether an answer to this request may be written without h11: nothing else about the connection changes."""
        is_whole = self.connection.their_state is h11.DONE and self.connection.our_state is h11.SEND_RESPONSE
        return (
            (bool(self._untold) or is_whole)
            and not self.context.terminated.is_set()
            and self.keep_alive_requests < self.config.keep_alive_max_requests
        )

    async def _maybe_recycle(self) -> None:
        if not self.answered_past_h11:
            await super()._maybe_recycle()
            return
        self.answered_past_h11 = False
        await self._close_stream()
        if self._untold:
            self._untold = b""
        else:
            # h11 has heard of the request and not of the answer: another one goes on with what follows the request.
            following = self.connection.trailing_data[0]
            self.connection = h11.Connection(h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size)
            if following:
                self.connection.receive_data(following)
        await self.send(Closed() if self.context.terminated.is_set() else Updated(idle=True))

    async def stream_send(self, event: StreamEvent) -> None:
        if not isinstance(event, StreamClosed):
            self._tell_h11()
        if isinstance(event, ResponseStart) and (self.context.terminated.is_set() or self.wants_body):
            event = ResponseStart(
                stream_id=event.stream_id,
                headers=[*event.headers, (b"connection", b"close")],
                status_code=event.status_code,
            )
        await super().stream_send(event)

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        # After an invalid message of the app h11 takes no other: there is nothing to do but to close.
        if self.connection.our_state is h11.ERROR:
            return
        try:
            pieces = self.connection.send_with_data_passthrough(event) or []  # None: for an event that we never send
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response) and _has_length(event):
            # One write for the head and its body, which is there already; that of a stream may be long in coming.
            self._held_head = b"".join(pieces)
            return
        pieces.insert(0, self._held_head)
        self._held_head = b""
        if sum(map(len, pieces)) <= MAX_JOINED:
            pieces = [b"".join(pieces)]
        for piece in pieces:
            if piece:
                await self.send(RawData(piece))


def _has_length(response: h11.Response) -> bool:
    return any(name == b"content-length" for name, _ in response.headers)


class HttpStream(HTTPStream):
    """Hypercorn's request and answer. An answer that needs none of what h11 looks after is written without it, in a
    seventh of the time.
    """

    def __init__(self, protocol: HttpProtocol) -> None:
        super().__init__(
            protocol.app,
            protocol.config,
            protocol.context,
            protocol.task_group,
            protocol.ssl,
            protocol.client,
            protocol.server,
            protocol.stream_send,
            STREAM_ID,
        )
        self._protocol = protocol
        self.is_past_h11 = False
        self._head = PlainHead(b"", None)

    async def app_send(self, message: Any) -> None:
        if self.is_past_h11 and message is not None and message["type"] == "http.response.body":
            await self._send_body(message)
        elif message is None or not await self._begin_past_h11(message):
            await super().app_send(message)

    async def _begin_past_h11(self, message: Any) -> bool:
        if message["type"] != "http.response.start" or self.state != ASGIHTTPState.REQUEST:
            return False
        if self.scope["method"] == "HEAD" or self.scope["http_version"] != "1.1" or not self._protocol.may_pass_h11():
            return False
        own = self.config.response_headers("h11")
        head = plain_head(message["status"], [*message.get("headers", ()), *own])
        if head is None:
            return False
        self.is_past_h11 = True
        self._head = head
        self.response = message
        self.state = ASGIHTTPState.RESPONSE
        if head.length is None:  # else head and body are one write: the body is there already
            await self._protocol.write([head.data])
        return True

    async def _send_body(self, message: Any) -> None:
        body = message.get("body", b"")
        goes_on = message.get("more_body", False)
        pieces: list[bytes] = []
        if self._head.length is not None:
            if goes_on or len(body) != self._head.length:  # h11 can count
                self.is_past_h11 = False
                self.state = ASGIHTTPState.REQUEST
                await super().app_send(self.response)
                await super().app_send(message)
                return
            pieces = [self._head.data, body]
        elif body:
            pieces = [b"%x\r\n" % len(body), body, b"\r\n"]
        if self._head.length is None and not goes_on:
            pieces.append(b"0\r\n\r\n")
        if pieces:
            await self._protocol.write(pieces)
        if not goes_on:
            self.state = ASGIHTTPState.CLOSED
            self._protocol.answered_past_h11 = True
            await self.send(StreamClosed(stream_id=self.stream_id))

    async def _send_error_response(self, status_code: int) -> None:
        """The last word for an app that failed before it answered: JSON, where Hypercorn has an empty body."""
        refusal = Refusal(status_code, "internal", "internal error")
        await self.send(
            ResponseStart(stream_id=self.stream_id, headers=refusal.headers(), status_code=status_code),
        )
        if self.scope["method"] != "HEAD":
            await self.send(Body(stream_id=self.stream_id, data=refusal.body()))
        await self.send(EndBody(stream_id=self.stream_id))
        self.state = ASGIHTTPState.CLOSED


class _Requests:
    """Stands in for Hypercorn's TaskGroup: runs each request as an Exchange in the connection's nursery."""

    def __init__(self, nursery: trio.Nursery, ask_for_body: Callable[[], Awaitable[None]]) -> None:
        self._nursery = nursery
        self._ask_for_body = ask_for_body

    async def spawn_app(
        self,
        app: AsgiApp,
        config: Config,
        scope: Scope,
        send: Callable[[Mapping[str, Any] | None], Awaitable[None]],
    ) -> Callable[[Mapping[str, Any]], Awaitable[None]]:
        exchange = Exchange(app, scope, send=send, ask_for_body=self._ask_for_body)
        scope["extensions"][DISCONNECT_SCOPE] = exchange.disconnect_scope
        self._nursery.start_soon(exchange.run)
        return exchange.put
