"""One connection: a socket of ours, with its limits, under Hypercorn's HTTP/1.1 protocol (see protocol.py)."""

from __future__ import annotations

import logging
import math
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

import trio
from hypercorn.events import Closed, Event, RawData, Updated

from pipeline_engine.api.serving.exchange import ClientGoneError
from pipeline_engine.api.serving.protocol import HttpProtocol, Service
from pipeline_engine.api.serving.refusals import Refusal

RECEIVE_SIZE = 64 * 1024  # bytes
MAX_PIPELINED = 64 * 1024  # bytes that are read while a response is under way, to notice that the client leaves
SEND_BUFFER = 256 * 1024  # bytes in the kernel for a client that does not read; by default it may be megabytes
LINGER_S = 2.0  # how long input is thrown away after an early answer: a reset would destroy the answer on its way
KEEPALIVE_PROBES = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # a vanished peer is found in 30 s
SILENCE_S = 10.0  # a peer that acknowledged nothing for so long has vanished
TCP_INFO_SIZE = 64  # bytes of Linux's struct tcp_info: up to tcpi_last_ack_recv, and a little

logger = logging.getLogger(__name__)


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
        self._stall = trio.CancelScope()  # of the write that waits for the client …
        self._stalled_since = self._last_write  # … since then
        self._is_tcp = self._socket.family != socket.AF_UNIX
        self._protocol: HttpProtocol | None = None

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
        """Ends an idle connection at once; one that serves a request ends with it (see `Service.stop`).

        Who has read nothing for as long as the grace by now will not do so within it either.
        """
        self._stall.deadline = min(self._stall.deadline, self._stalled_since + self._settings.grace_s)
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

    def _make_protocol(self, requests: trio.Nursery) -> HttpProtocol:
        client: tuple[str, int] | None = None
        local = self._socket.getsockname()
        # (path, None) is ASGI's form for a unix socket.
        server = (local[0], local[1]) if self._is_tcp else (str(local), None)
        if self._is_tcp:
            with suppress(OSError):  # it has left already, which the first read will tell
                client = self._socket.getpeername()[:2]
        return HttpProtocol(
            self._service, requests=requests, client=client, server=server, send=self._handle, write=self._write
        )

    async def _handle(self, event: Event) -> None:
        """What the protocol wants of the socket."""
        if isinstance(event, RawData):
            await self._write([event.data])
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

    async def _read(self, protocol: HttpProtocol) -> None:
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
            protocol.receive(data)

    def _read_deadline(self, protocol: HttpProtocol) -> float:
        if protocol.stream is None:
            if self._head_started is None:
                return self._idle_until
            return self._head_started + self._settings.head_timeout_s
        if protocol.wants_body:
            # Only the time in which we waited for the client counts, not what the app took.
            allowed = self._settings.body_timeout_s + protocol.body_bytes / self._settings.min_body_rate
            return trio.current_time() + allowed - self._body_wait
        return math.inf

    async def _end_waiting(self, protocol: HttpProtocol) -> None:
        if protocol.stream is None and self._head_started is None:
            self._finish()
        else:
            await protocol.refuse(Refusal(408, "invalid_request", "the request did not arrive in time"))

    async def _write(self, pieces: Sequence[bytes]) -> None:
        try:
            if self._send_lock.locked():
                await self._send_lock.acquire()
            else:
                self._send_lock.acquire_nowait()
            try:
                await self._send_all(pieces)
            finally:
                self._send_lock.release()
        except (OSError, trio.ClosedResourceError) as exc:
            self.abort()
            raise ClientGoneError("the client has closed the connection") from exc
        except trio.Cancelled:
            self._finish()  # the protocol counts this as sent: nothing can follow
            raise

    async def _send_all(self, pieces: Sequence[bytes]) -> None:
        now = trio.current_time()
        if self._is_tcp and now - self._last_write > SILENCE_S / 2 and _has_vanished(self._socket):
            raise ClientGoneError("the client has vanished")
        left: Sequence[bytes | memoryview] = pieces
        # Without a checkpoint as long as the kernel has room, which it has for most answers: see Exchange.
        while left := self._send_now(left):
            self._stalled_since = now
            with trio.move_on_after(self._settings.write_stall_s) as self._stall:
                await trio.lowlevel.wait_writable(self._socket)
            now = trio.current_time()
            if self._stall.cancelled_caught:
                logger.info("a client read nothing for %g s and was cut off", now - self._stalled_since)
                raise ClientGoneError("the client does not read")
        self._last_write = now

    def _send_now(self, pieces: Sequence[bytes | memoryview]) -> Sequence[bytes | memoryview]:
        """What the kernel had no room for; nothing is copied, since clients that do not read would each hold a copy."""
        try:
            sent = os.writev(self._socket.fileno(), pieces)
        except BlockingIOError:
            return pieces
        for index, piece in enumerate(pieces):
            if sent < len(piece):
                return [memoryview(piece)[sent:], *pieces[index + 1 :]]
            sent -= len(piece)
        return ()

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
