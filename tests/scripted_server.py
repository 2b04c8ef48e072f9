"""A server that answers each request as the test says, and records what its clients did.

    async with open_server(Reply.json({"ok": True})) as server:
        ...  # server.url, server.requests, server.connections

The nth request gets the nth reply; the last one repeats.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import trio

CRLF = b"\r\n"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer. `end` says what follows its chunks:

    `length` a body with Content-Length; `chunked` a complete chunked body; `close` a body that ends with the
    connection; `cut` a chunked body that ends without its last chunk; `reset` a TCP reset; `stall` nothing, until the
    client goes; `silent` not even a head; `drop` the connection closes without a byte.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    chunks: Sequence[bytes] = ()
    #: Seconds to wait before each chunk.
    delay_s: float = 0.0
    end: Literal["length", "chunked", "close", "cut", "reset", "stall", "silent", "drop"] = "length"
    #: All chunks in one write, as a fast server's arrive.
    at_once: bool = False

    @staticmethod
    def json(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return Reply(status=status, headers={"content-type": "application/json", **(headers or {})}, chunks=[body])

    @staticmethod
    def sse(*data: Any, end: Literal["chunked", "close", "cut", "reset", "stall"] = "chunked") -> Reply:
        """A stream of events: bytes go out as they are, other values as `data: JSON`."""
        chunks = [one if isinstance(one, bytes) else b"data: " + json.dumps(one).encode() + b"\n\n" for one in data]
        return Reply(headers={"content-type": "text/event-stream"}, chunks=chunks, end=end)

    @staticmethod
    def ndjson(*lines: Any, end: Literal["chunked", "close", "cut", "reset", "stall"] = "chunked") -> Reply:
        """A stream of JSON lines: bytes go out as they are."""
        chunks = [one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in lines]
        return Reply(headers={"content-type": "application/x-ndjson"}, chunks=chunks, end=end)


@dataclass(eq=False)
class Request:
    """What a client sent."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int
    #: Set when the client has closed the connection on which this request came.
    gone: trio.Event

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class ScriptedServer:
    """What happened so far. `open_connections` counts those that the clients have not closed."""

    def __init__(self, port: int, replies: Sequence[Reply], host: str) -> None:
        self.port = port
        self.url = f"http://{host}:{port}"
        self.replies = list(replies)
        self.requests: list[Request] = []
        self.connections = 0
        self.open_connections = 0
        self._changed = trio.Event()

    async def wait_for_requests(self, count: int) -> None:
        """Wait until so many requests have come."""
        while len(self.requests) < count:
            await self._changed.wait()

    async def wait_until_all_closed(self) -> None:
        """Wait until the clients have closed all their connections."""
        while self.open_connections:
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        number, gone = self.connections, trio.Event()
        self.connections += 1
        self.open_connections += 1
        self._notify()
        try:
            async with stream:
                await self._serve_requests(stream, number, gone)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            gone.set()
            self.open_connections -= 1
            self._notify()

    async def _serve_requests(self, stream: trio.SocketStream, number: int, gone: trio.Event) -> None:
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                if not (more := await stream.receive_some()):
                    return
                data += more
            head, _, data = data.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            method, target, _ = first.split(" ", 2)
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            size = int(headers.get("content-length", "0"))
            while len(data) < size:
                if not (more := await stream.receive_some()):
                    return
                data += more
            body, data = data[:size], data[size:]
            reply = self.replies[min(len(self.requests), len(self.replies) - 1)]
            self.requests.append(Request(method, target, headers, body, number, gone))
            self._notify()
            if not await self._answer(stream, reply):
                return

    async def _answer(self, stream: trio.SocketStream, reply: Reply) -> bool:
        """Send the reply, and notice at once if the client goes; whether the connection can serve another request."""
        keep = False

        async def send() -> None:
            nonlocal keep
            with suppress(trio.BrokenResourceError):  # the client went in the middle
                keep = await _send(stream, reply)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await _until_closed(stream)
            nursery.cancel_scope.cancel()
        return keep


async def _until_closed(stream: trio.SocketStream) -> None:
    # A client of ours sends nothing before it has its answer: what can be read is the end.
    while True:
        await trio.lowlevel.wait_readable(stream.socket)
        try:
            if not await stream.socket.recv(1, socket.MSG_PEEK):
                return
        except OSError:
            return
        await trio.sleep(0.005)


async def _send(stream: trio.SocketStream, reply: Reply) -> bool:
    if reply.end == "drop":
        return False
    if reply.end == "silent":
        await trio.sleep_forever()
    chunked = reply.end in ("chunked", "cut", "reset", "stall")
    lines = [f"HTTP/1.1 {reply.status} Scripted", *(f"{name}: {value}" for name, value in reply.headers.items())]
    if reply.end == "length":
        lines.append(f"content-length: {sum(map(len, reply.chunks))}")
    else:
        lines.append("transfer-encoding: chunked" if chunked else "connection: close")
    parts = ["\r\n".join([*lines, "", ""]).encode("latin-1")]
    parts += [f"{len(chunk):x}".encode() + CRLF + chunk + CRLF if chunked else chunk for chunk in reply.chunks if chunk]
    if reply.end == "chunked":
        parts.append(b"0\r\n\r\n")
    for part in [b"".join(parts)] if reply.at_once else parts:
        if reply.delay_s:
            await trio.sleep(reply.delay_s)
        await stream.send_all(part)
    if reply.end == "stall":
        await trio.sleep_forever()
    if reply.end == "reset":
        await trio.sleep(0.02)  # what was sent must have been read: a reset discards the rest
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return reply.end in ("length", "chunked")


@asynccontextmanager
async def open_server(*replies: Reply, host: str = "127.0.0.1") -> AsyncIterator[ScriptedServer]:
    """Serve the replies on a port of the system's choice until the block ends."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host=host)
        shown = f"[{host}]" if ":" in host else host
        server = ScriptedServer(listeners[0].socket.getsockname()[1], replies, shown)
        nursery.start_soon(trio.serve_listeners, server.serve, listeners)
        try:
            yield server
        except Exception as exc:  # noqa: BLE001 - raised again below, where the nursery does not wrap it in a group
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
