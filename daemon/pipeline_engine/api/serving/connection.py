"""One connection: Hypercorn's HTTP/1.1 protocol on a socket of ours. Nothing else here knows Hypercorn.

Hypercorn is pinned to one release, since this leans on its internals. Its own trio server lets one bad request end the
process (h2c and websocket upgrades, prior-knowledge HTTP/2), has no limit for a write or for a slow sender, stops
reading (so that it misses a disconnect) when more bytes follow a request, and cannot end while a reader is stuck. What
it parses and how it frames answers is sound. So `HTTPStream` and `H11Protocol` stay, without the upgrades; the
server round them, which is where all of that sits, is replaced.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, cast

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Request
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Response as ResponseStart
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, H11SendableEvent, TaskGroup

from pipeline_engine.api.serving.asgi import AsgiApp, Scope
from pipeline_engine.api.serving.exchange import DISCONNECT_SCOPE, ClientGoneError, Exchange
from pipeline_engine.api.serving.refusals import Refusal
from pipeline_engine.api.serving.settings import ServeSettings

RECEIVE_SIZE = 64 * 1024  # bytes
MAX_PIPELINED = 64 * 1024  # bytes that are read while a response is under way, to notice that the client leaves
MAX_JOINED = 16 * 1024  # bytes; of more than that, clients that do not read would each hold a second copy
SEND_BUFFER = 256 * 1024  # bytes in the kernel for a client that does not read; by default it may be megabytes
LINGER_S = 2.0  # how long input is thrown away after an early answer: a reset would destroy the answer on its way
KEEPALIVE_PROBES = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # a vanished peer is found in 30 s
SILENCE_S = 10.0  # a peer that acknowledged nothing for so long has vanished
TCP_INFO_SIZE = 64  # bytes of Linux's struct tcp_info: up to tcpi_last_ack_recv, and a little
HTTP_VERSIONS = frozenset({b"1.0", b"1.1"})

logger = logging.getLogger(__name__)


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


class Connection:
    """Serves the requests of one client, one after the other, until either side closes."""

    def __init__(self, stream: trio.SocketStream, *, service: Service) -> None:
        self._stream = stream
        self._socket = stream.socket
        self._service = service
        self._settings = service.settings
        self._send_lock = trio.Lock()
        self._finishing = False
        self._reading = trio.CancelScope()
        self._pipelined = 0
        self._connected_at: float | None = trio.current_time()  # until the first response is complete
        self._idle_until = self._connected_at + self._settings.head_timeout_s
        self._head_started: float | None = None
        self._body_wait = 0.0
        self._last_write = trio.current_time()
        self._is_tcp = self._socket.family != socket.AF_UNIX
        self._protocol: _Protocol | None = None

    async def run(self) -> None:
        """Raises nothing on account of what the client does."""
        if self._is_tcp:
            _prepare(self._socket)
        try:
            async with trio.open_nursery() as requests:
                protocol = self._protocol = self._make_protocol(requests)
                try:
                    await self._read(protocol)
                    await self._close(linger=protocol.expects_input)
                except (ClientGoneError, trio.BrokenResourceError, trio.ClosedResourceError):
                    self.abort()
                await protocol.handle(Closed())  # the app, if it still runs, hears that nobody listens
        finally:
            self.abort()

    def stop(self) -> None:
        """Ends an idle connection at once; one that serves a request ends with it (see `Service.stop`)."""
        if self._protocol is None or self._protocol.stream is None:
            self._finish()

    def abort(self) -> None:
        """Closes the socket now; what the client has not read yet is dropped."""
        if self._socket.fileno() != -1:
            if not self._finishing:
                # A reset, and no bytes left in the kernel for a reader that may never come back.
                with suppress(OSError):
                    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._socket.close()

    def _make_protocol(self, requests: trio.Nursery) -> _Protocol:
        client: tuple[str, int] | None = None
        local = self._socket.getsockname()
        # (path, None) is ASGI's form for a unix socket.
        server = (local[0], local[1]) if self._is_tcp else (str(local), None)
        if self._is_tcp:
            with suppress(OSError):  # it has left already, which the first read will tell
                client = self._socket.getpeername()[:2]
        return _Protocol(self._service, requests=requests, client=client, server=server, send=self._handle)

    async def _handle(self, event: Event) -> None:
        """What the protocol wants of the socket."""
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, Closed):
            self._finish()
        elif isinstance(event, Updated):
            now = trio.current_time()
            self._idle_until = now + self._settings.keep_alive_s
            self._connected_at = None
            self._pipelined = 0
            if self._protocol is not None and self._protocol.connection.trailing_data[0]:
                self._head_started = now
                self._reading.cancel()  # the reader has a request to parse
            else:
                self._head_started = None
                self._reading.deadline = self._idle_until

    def _finish(self) -> None:
        # Never closes here: this is called from the app's last `send`, and closing takes time (see LINGER_S).
        self._finishing = True
        self._reading.cancel()

    async def _read(self, protocol: _Protocol) -> None:
        while not self._finishing:
            await protocol.process()
            if self._finishing:
                return
            if protocol.stream is not None:
                self._head_started = None
            started = trio.current_time()
            deadline = self._read_deadline(protocol)
            if started >= deadline:
                await self._end_waiting(protocol)
                return
            with trio.CancelScope(deadline=deadline) as self._reading:
                if self._pipelined > MAX_PIPELINED:
                    await trio.sleep_forever()
                data = await self._receive()
            if protocol.wants_body:
                self._body_wait += trio.current_time() - started
            else:
                self._body_wait = 0.0
            if self._reading.cancelled_caught:
                continue
            if not data:
                # It may have closed its side only, but no client of ours does that, and waiting for a failing write
                # instead would keep followers that have left.
                self._finishing = True
                return
            if protocol.stream is None:
                self._head_started = self._head_started or self._connected_at or trio.current_time()
            elif not protocol.wants_body:
                self._pipelined += len(data)
            protocol.connection.receive_data(data)

    def _read_deadline(self, protocol: _Protocol) -> float:
        if protocol.stream is None:
            if self._head_started is None:
                return self._idle_until
            return self._head_started + self._settings.head_timeout_s
        if protocol.wants_body:
            # Only the time in which we waited for the client counts, not what the app took.
            allowed = self._settings.body_timeout_s + protocol.body_bytes / self._settings.min_body_rate
            return trio.current_time() + allowed - self._body_wait
        return math.inf

    async def _end_waiting(self, protocol: _Protocol) -> None:
        if protocol.stream is None and self._head_started is None:
            self._finish()
        else:
            await protocol.refuse(Refusal(408, "invalid_request", "the request did not arrive in time"))

    async def _write(self, data: bytes) -> None:
        try:
            if self._send_lock.locked():
                await self._send_lock.acquire()
            else:
                self._send_lock.acquire_nowait()
            try:
                await self._send_all(data)
            finally:
                self._send_lock.release()
        except (OSError, trio.ClosedResourceError) as exc:
            self.abort()
            raise ClientGoneError("the client has closed the connection") from exc
        except trio.Cancelled:
            self._finish()  # the protocol counts this as sent: nothing can follow
            raise

    async def _send_all(self, data: bytes) -> None:
        if self._is_tcp and trio.current_time() - self._last_write > SILENCE_S / 2 and _has_vanished(self._socket):
            raise ClientGoneError("the client has vanished")
        left = memoryview(data)
        # Without a checkpoint as long as the kernel has room, which it has for most answers: see Exchange.
        while left := self._send_now(left):
            with trio.move_on_after(self._settings.write_stall_s) as stall:
                await trio.lowlevel.wait_writable(self._socket)
            if stall.cancelled_caught:
                logger.info("a client read nothing for %g s and was cut off", self._settings.write_stall_s)
                raise ClientGoneError("the client does not read")
        self._last_write = trio.current_time()

    def _send_now(self, data: memoryview) -> memoryview:
        """What the kernel had no room for."""
        try:
            return data[os.write(self._socket.fileno(), data) :]
        except BlockingIOError:
            return data

    async def _receive(self) -> bytes:
        """What has arrived; empty when the client has closed."""
        while True:
            if self._socket.fileno() == -1:
                raise ClientGoneError("the connection was closed here")
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return os.read(self._socket.fileno(), RECEIVE_SIZE)
            except BlockingIOError:
                continue  # a false alarm
            except OSError as exc:
                raise ClientGoneError("the client has closed the connection") from exc

    async def _close(self, *, linger: bool) -> None:
        if linger:
            await self._stream.send_eof()
            with trio.move_on_after(LINGER_S):
                while await self._stream.receive_some(RECEIVE_SIZE):
                    pass
        self.abort()


class _Protocol(H11Protocol):
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

    async def process(self) -> None:
        """Handles all that has been received, as far as it can be now."""
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
                await self._start(event)
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

    async def refuse(self, refusal: Refusal) -> None:
        """Answers for the app, unless that has begun to, and ends the connection."""
        await self._close_stream()
        if self.connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
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
        for name, value in request.headers:
            if name == b"content-length" and int(value) > self.max_body_bytes:
                return self._too_large()
        return None

    def _too_large(self) -> Refusal:
        return Refusal(413, "payload_too_large", f"a body may have {self.max_body_bytes} bytes")

    async def _start(self, request: h11.Request) -> None:
        self.body_bytes = 0
        self.stream = _Stream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
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

    async def stream_send(self, event: StreamEvent) -> None:
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


class _Stream(HTTPStream):
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


def _prepare(sock: trio.socket.SocketType) -> None:
    """Find peers that vanish while nothing is sent, and hold little for those that do not read."""
    with suppress(OSError):  # it may have left already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER // 2)  # Linux doubles it
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE_PROBES.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _has_vanished(sock: trio.socket.SocketType) -> bool:
    """Whether what was sent before is still on its way and the peer silent: then no FIN will ever come.

    Keep-alive probes do not find this (none are sent while data is on its way), and the kernel gives up only after
    many minutes. TCP_USER_TIMEOUT would also cut off a client that lives but does not read. Asking before a write is
    enough, since a stream is never silent for long: it has heartbeats.
    """
    if not hasattr(socket, "TCP_INFO") or sock.fileno() == -1:
        return False
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
    (unacknowledged,) = struct.unpack_from("=I", info, 24)
    (since_last_ack_ms,) = struct.unpack_from("=I", info, 56)
    return bool(unacknowledged) and since_last_ack_ms > SILENCE_S * 1000
