"""A server on real sockets, apps for it, and clients that send bytes."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio
from quart import Response
from quart_trio import QuartTrio

from pipeline_engine.api.serving import (
    Guard,
    GuardSettings,
    ServeSettings,
    describe_listener,
    host_names,
    open_listeners,
    serve,
)
from pipeline_engine.listen_addresses import Address, TcpAddress, UnixAddress

LOOPBACK = TcpAddress("127.0.0.1", 0)
GET_HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
GET_STREAM = b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n"
PIECE = b"x" * 65_536


class RawApp:
    """A bare ASGI app that remembers what the server told it."""

    def __init__(self) -> None:
        self.running = 0
        self.disconnected = trio.Event()
        self.streaming = trio.Event()
        self.body = b""
        self.sent = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        self.running += 1
        try:
            await getattr(self, scope["path"].strip("/").replace("-", "_") or "health")(scope, receive, send)
        finally:
            self.running -= 1

    async def answer(self, send: Any, body: bytes, status: int = 200) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def health(self, scope: Any, receive: Any, send: Any) -> None:
        await self.answer(send, b'{"status":"ok"}')

    async def echo(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnected.set()
                return
            body += message["body"]
            if not message["more_body"]:
                break
        await self.answer(send, b"%d" % len(body))

    async def stream(self, scope: Any, receive: Any, send: Any) -> None:
        """Sends one line and then nothing, until the client leaves."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}\n", "more_body": True})
        self.streaming.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        self.disconnected.set()

    async def flood(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            self.sent += len(PIECE)

    async def after_the_end(self, scope: Any, receive: Any, send: Any) -> None:
        await self.answer(send, b"{}")
        while (await receive())["type"] != "http.disconnect":
            pass
        self.disconnected.set()

    async def crash(self, scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("a fault of the app")

    async def crash_late(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}\n", "more_body": True})
        raise ValueError("a fault of the app")

    async def bad_header(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"a\r\nb: c")]})

    async def too_much(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
        await send({"type": "http.response.body", "body": b"two"})


def make_quart_app() -> QuartTrio:
    app = QuartTrio(__name__)
    app.config["RESPONSE_TIMEOUT"] = 0.2  # short, so that a stream that it applied to would be cut

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/stream")
    async def stream() -> Response:
        async def lines() -> AsyncGenerator[bytes, None]:
            for number in range(4):
                yield b'{"seq":%d}\n' % number
                await trio.sleep(0.1)

        response = Response(lines(), content_type="application/x-ndjson")
        response.timeout = None
        return response

    return app


class Server:
    def __init__(self, listeners: list[trio.SocketListener], stop: trio.Event, done: trio.Event) -> None:
        self.address = describe_listener(listeners[0])
        self.stop = stop
        self.done = done

    async def connect(self) -> trio.SocketStream:
        if isinstance(self.address, UnixAddress):
            return await trio.open_unix_socket(self.address.path)
        return await trio.open_tcp_stream(self.address.host, self.address.port)

    async def exchange(self, data: bytes, *, seconds: float = 5.0) -> bytes:
        """Sends the bytes and reads until the server closes, which it must do in time."""
        async with await self.connect() as stream:
            await stream.send_all(data)
            with trio.fail_after(seconds):
                return await read_all(stream)

    async def assert_serves(self) -> None:
        head, body = split(await self.exchange(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
        assert head.startswith(b"HTTP/1.1 200"), head
        assert json.loads(body) == {"status": "ok"}


@asynccontextmanager
async def running(
    app: Any,
    *,
    address: Address = LOOPBACK,
    **settings: Any,
) -> AsyncGenerator[Server, None]:
    stop, done = trio.Event(), trio.Event()

    async def run(listeners: list[trio.SocketListener], *, task_status: Any) -> None:
        port = getattr(describe_listener(listeners[0]), "port", 0)
        guard = Guard(app, settings=GuardSettings(allowed_hosts=host_names([("127.0.0.1", port)])))
        await serve(guard, listeners, settings=ServeSettings(**settings), stop=stop, task_status=task_status)
        done.set()

    async with open_listeners([address]) as listeners, trio.open_nursery() as nursery:
        await nursery.start(partial(run, listeners))
        yield Server(listeners, stop, done)
        nursery.cancel_scope.cancel()


async def read_all(stream: trio.SocketStream) -> bytes:
    data = b""
    try:
        while part := await stream.receive_some(65_536):
            data += part
    except trio.BrokenResourceError:
        pass
    return data


async def read_until(stream: trio.SocketStream, mark: bytes, *, seconds: float = 5.0) -> bytes:
    data = b""
    with trio.fail_after(seconds):
        while mark not in data:
            part = await stream.receive_some(65_536)
            assert part, f"closed after {data!r}"
            data += part
    return data


async def until(condition: Callable[[], bool], *, seconds: float = 5.0) -> None:
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 (what is waited for is the work of a kernel and of a server)
            await trio.sleep(0.01)


def count_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def split(answer: bytes) -> tuple[bytes, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


def assert_error(answer: bytes, status: int, code: str) -> None:
    head, body = split(answer)
    assert head.split(b" ")[1] == b"%d" % status, answer
    assert json.loads(body)["error"]["code"] == code
    assert b"content-length: %d" % len(body) in head.lower()


def reset(stream: trio.SocketStream) -> None:
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


APPS: list[Callable[[], Any]] = [RawApp, make_quart_app]


def post(length: int | None, *extra: bytes) -> bytes:
    framing = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    head = [b"POST /echo HTTP/1.1", b"Host: localhost", b"Content-Type: application/json", framing, *extra]
    return b"\r\n".join(head) + b"\r\n\r\n"
