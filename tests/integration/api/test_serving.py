"""Real sockets: what clients do to connections, and that the server and its other clients live on."""

from __future__ import annotations

import errno
import gc
import json
import os
import socket
import stat
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from quart import Response
from quart_trio import QuartTrio

from pipeline_engine.api.serving import (
    Guard,
    GuardSettings,
    ListenError,
    ServeSettings,
    describe_listener,
    host_names,
    open_listeners,
    serve,
)
from pipeline_engine.api.serving import server as server_module
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


@pytest.mark.parametrize("make_app", APPS)
async def test_keep_alive_serves_many_requests_on_one_connection(make_app: Callable[[], Any]) -> None:
    async with running(make_app()) as server, await server.connect() as stream:
        for _ in range(20):
            await stream.send_all(GET_HEALTH)
            assert b"200" in await read_until(stream, b"}")


@pytest.mark.parametrize("make_app", APPS)
async def test_pipelined_requests_are_all_answered_in_order(make_app: Callable[[], Any]) -> None:
    async with running(make_app()) as server:
        last = b"GET /nowhere HTTP/1.1\r\nHost: evil.example\r\n\r\n"
        answer = await server.exchange(GET_HEALTH * 5 + last)
        assert answer.count(b"HTTP/1.1 200") == 5
        assert answer.rindex(b"HTTP/1.1 200") < answer.index(b"HTTP/1.1 403")


async def test_requests_of_all_kinds_take_turns_on_one_connection() -> None:
    plain, chunked = post(2) + b"{}", post(None) + b"3\r\n{ }\r\n0\r\n\r\n"
    head = GET_HEALTH.replace(b"GET", b"HEAD")
    async with running(RawApp()) as server, await server.connect() as stream:
        for sent, last in [(plain, b"\r\n\r\n2"), (chunked, b"\r\n\r\n3"), (GET_HEALTH, b"}"), (head, b"\r\n\r\n")] * 3:
            await stream.send_all(sent)
            assert (await read_until(stream, last)).startswith(b"HTTP/1.1 200")
            await stream.send_all(sent[:9])  # the rest comes late
            await trio.sleep(0.02)
            await stream.send_all(sent[9:])
            assert (await read_until(stream, last)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("status", [200, 204])
async def test_a_request_that_comes_while_one_is_answered_is_next(status: int) -> None:
    goes_on = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await goes_on.wait()
        await send({"type": "http.response.start", "status": status, "headers": [(b"x", scope["path"].encode())]})
        await send({"type": "http.response.body", "body": b""})

    async with running(app) as server, await server.connect() as stream:
        for name in (b"/a", b"/b", b"/c"):
            await stream.send_all(GET_HEALTH.replace(b"/health", name))
            await trio.sleep(0.02)
        goes_on.set()
        answers = b""
        while b"x: /c\r\n" not in answers:
            answers += await read_until(stream, b"\r\n\r\n")
        assert [answers.count(b"x: %b\r\n" % name) for name in (b"/a", b"/b", b"/c")] == [1, 1, 1]
        assert answers.index(b"/a") < answers.index(b"/b") < answers.index(b"/c")
        assert answers.count(b"HTTP/1.1 %d" % status) == 3


@pytest.mark.parametrize("make_app", APPS)
@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n",
    ],
)
async def test_the_connection_closes_when_it_should(make_app: Callable[[], Any], request_head: bytes) -> None:
    async with running(make_app()) as server:
        assert b"200" in await server.exchange(request_head, seconds=2)


async def test_a_quart_stream_outlives_the_default_response_timeout() -> None:
    async with running(make_quart_app()) as server, await server.connect() as stream:
        await stream.send_all(GET_STREAM)
        answer = await read_until(stream, b"0\r\n\r\n")
        assert [f'{{"seq":{number}}}'.encode() in answer for number in range(4)] == [True] * 4
        await stream.send_all(GET_HEALTH)
        assert b"200" in await read_until(stream, b"}")


async def test_an_app_that_listens_on_hears_the_end_of_its_exchange() -> None:
    app = RawApp()
    async with running(app) as server:
        await server.exchange(b"GET /after-the-end HTTP/1.0\r\nHost: localhost\r\n\r\n")
        with trio.fail_after(2):
            await app.disconnected.wait()


@pytest.mark.parametrize("leave", ["close", "reset"])
@pytest.mark.parametrize(
    "extra",
    [b"", b"\r\n", GET_HEALTH, b"GET / HT", b"\x00garbage\r\n\r\n", b"x" * 30_000],
    ids=["nothing", "newline", "request", "part", "garbage", "much"],
)
async def test_a_client_that_leaves_an_idle_stream_is_noticed_at_once(leave: str, extra: bytes) -> None:
    app = RawApp()
    async with running(app) as server:
        stream = await server.connect()
        await stream.send_all(GET_STREAM + extra)
        await read_until(stream, b"{}\n")
        await until(lambda: app.running == 1)
        if leave == "close":
            await stream.aclose()
        else:
            reset(stream)
        with trio.fail_after(1):
            await app.disconnected.wait()


async def test_a_client_that_leaves_behind_an_upgrade_request_is_noticed() -> None:
    app = RawApp()
    async with running(app) as server:
        stream = await server.connect()
        upgrade = b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
        await stream.send_all(GET_STREAM.removesuffix(b"\r\n") + upgrade)
        assert b" 101 " not in await read_until(stream, b"{}\n")
        await stream.aclose()
        with trio.fail_after(1):
            await app.disconnected.wait()


async def test_many_clients_come_and_go_without_a_trace() -> None:
    app = RawApp()
    async with running(app) as server:
        await server.assert_serves()
        gc.collect()
        before = count_open_files()
        for number in range(200):
            stream = await server.connect()
            await stream.send_all(GET_STREAM)
            await read_until(stream, b"{}\n")
            if number % 2:
                reset(stream)
            else:
                await stream.aclose()
        await until(lambda: app.running == 0)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert count_open_files() == before


async def test_a_reader_that_stops_costs_no_memory_and_hinders_nobody() -> None:
    app = RawApp()
    async with running(app) as server, await server.connect() as stuck:
        await stuck.send_all(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for _ in range(5):
            await trio.sleep(0.1)
            await server.assert_serves()
        assert 0 < app.sent < 32 * 1024 * 1024  # what the kernel's buffers take
        assert app.running == 1


async def test_a_reader_that_stops_is_cut_off_and_a_slow_one_is_not() -> None:
    app = RawApp()
    async with running(app, write_stall_s=0.5) as server:
        stuck = await server.connect()
        await stuck.send_all(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: app.sent > 0 and app.running == 0)
        await stuck.aclose()
        slow = await server.connect()
        await slow.send_all(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for _ in range(15):
            for _ in range(40):
                assert await slow.receive_some(65_536)
            await trio.sleep(0.1)
        assert app.running == 1
        await slow.aclose()


@pytest.mark.parametrize("grace_s", [0.2, 1.0])
async def test_a_stop_with_a_stuck_reader_and_an_idle_stream_ends_in_time(grace_s: float) -> None:
    app = RawApp()
    async with running(app, grace_s=grace_s) as server, await server.connect() as stuck, await server.connect() as idle:
        await stuck.send_all(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await idle.send_all(GET_STREAM)
        await read_until(idle, b"{}\n")
        server.stop.set()
        with trio.fail_after(grace_s + 1):
            await server.done.wait()
        assert app.running == 0
        assert not (await read_all(idle)).endswith(b"0\r\n\r\n")  # never told that the stream was complete


async def test_a_stop_closes_idle_connections_at_once_and_lets_the_others_end() -> None:
    app = RawApp()
    async with running(app) as server, await server.connect() as idle, await server.connect() as busy:
        await idle.send_all(GET_HEALTH)
        await read_until(idle, b"}")
        head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
        await busy.send_all(head)
        await trio.testing.wait_all_tasks_blocked(0.01)
        server.stop.set()
        with trio.fail_after(1):
            assert await read_all(idle) == b""
        with pytest.raises(OSError, match=r"refused|failed"):
            await server.connect()
        await busy.send_all(b"{}")
        with trio.fail_after(2):
            answer = await read_all(busy)
            await server.done.wait()
        assert answer.endswith(b"\r\n\r\n2")
        assert b"connection: close" in answer.lower()


async def test_a_write_that_the_app_gives_up_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    flood = RawApp()

    async def impatient_app(scope: Any, receive: Any, send: Any) -> None:
        with trio.move_on_after(0.3):
            await flood(scope, receive, send)

    async with running(impatient_app) as server, await server.connect() as stuck:
        await stuck.send_all(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: flood.sent > 0 and flood.running == 0)
        with trio.fail_after(2):
            assert not (await read_all(stuck)).endswith(b"0\r\n\r\n")
        await server.assert_serves()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_clients_that_reset_before_they_are_accepted_hurt_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async with running(RawApp()) as server:
        assert isinstance(server.address, TcpAddress)
        for _ in range(50):
            with socket.create_connection((server.address.host, server.address.port)) as client:
                client.sendall(GET_HEALTH)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await server.assert_serves()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_to_cancel_is_to_stop_without_grace() -> None:
    app = RawApp()
    with trio.fail_after(2):
        async with running(app, grace_s=60) as server:
            stream = await server.connect()
            await stream.send_all(GET_STREAM)
            await read_until(stream, b"{}\n")
    assert app.running == 0
    await stream.aclose()


MALFORMED = {
    "binary": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "http2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http9": b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "negative length": b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    "two lengths": b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "odd encoding": b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
    "bad chunk": b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n\r\n",
    "connect": b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "space in name": b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "nul": b"GET /he\x00alth HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
async def test_what_is_not_http_gets_a_json_error(data: bytes) -> None:
    async with running(RawApp()) as server:
        assert_error(await server.exchange(data), 400, "invalid_request")
        await server.assert_serves()


async def test_a_host_that_is_not_text_is_refused() -> None:
    async with running(RawApp()) as server:
        answer = await server.exchange(b"GET /health HTTP/1.1\r\nHost: \xff\r\nConnection: close\r\n\r\n")
        assert answer.split(b" ")[1] in (b"400", b"403")
        await server.assert_serves()


async def test_a_head_without_end_is_refused() -> None:
    async with running(RawApp()) as server:
        answer = await server.exchange(b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 300_000)
        assert_error(answer, 431, "invalid_request")


@pytest.mark.parametrize("make_app", APPS)
@pytest.mark.parametrize(
    "upgrade",
    [
        b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: A\r\n",
        b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        (
            b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: \xff\r\n"
        ),
    ],
)
async def test_upgrades_are_ignored(make_app: Callable[[], Any], upgrade: bytes) -> None:
    async with running(make_app()) as server:
        answer = await server.exchange(GET_HEALTH.removesuffix(b"\r\n") + upgrade + b"\r\ntrailing\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert b"HTTP/1.1 400" in answer  # what trails is the next request
        await server.assert_serves()


def post(length: int | None, *extra: bytes) -> bytes:
    framing = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    head = [b"POST /echo HTTP/1.1", b"Host: localhost", b"Content-Type: application/json", framing, *extra]
    return b"\r\n".join(head) + b"\r\n\r\n"


async def test_a_body_up_to_the_limit_arrives_whole() -> None:
    async with running(RawApp(), max_body_bytes=3_000_000) as server:
        answer = await server.exchange(post(3_000_000, b"Connection: close") + b"x" * 3_000_000)
        assert answer.endswith(b"\r\n\r\n3000000")


async def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent() -> None:
    async with running(RawApp(), max_body_bytes=1000) as server:
        answer = await server.exchange(post(1001, b"Expect: 100-continue"))
        assert_error(answer, 413, "payload_too_large")
        head = post(9_999_999_999_999).replace(b"POST", b"HEAD")
        assert split(await server.exchange(head))[0].startswith(b"HTTP/1.1 413")


async def test_a_body_that_proves_too_large_is_refused_and_the_sender_can_read_why() -> None:
    async with running(RawApp(), max_body_bytes=100_000) as server:
        stream = await server.connect()

        async def send() -> None:
            await stream.send_all(post(None))
            while True:
                await stream.send_all(b"10000\r\n" + PIECE + b"\r\n")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            answer = await read_until(stream, b"}}")
            nursery.cancel_scope.cancel()
        assert_error(answer, 413, "payload_too_large")
        await stream.aclose()
        await server.assert_serves()


async def test_a_large_body_that_the_app_refuses_unread_blocks_nothing() -> None:
    async with running(RawApp()) as server, await server.connect() as stream:
        head = post(5_000_000).replace(b"application/json", b"text/plain")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, head + b"x" * 5_000_000)
            answer = await read_until(stream, b"}}")
        assert_error(answer, 415, "unsupported_media_type")
        assert b"connection: close" in answer.lower()
        with trio.fail_after(1):
            assert await read_all(stream) == b""


async def test_a_body_is_asked_for_only_when_the_app_wants_it() -> None:
    async with running(RawApp()) as server:
        async with await server.connect() as stream:
            await stream.send_all(post(2, b"Expect: 100-continue"))
            assert (await read_until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
            await stream.send_all(b"{}")
            assert (await read_until(stream, b"\r\n\r\n2")).startswith(b"HTTP/1.1 200")
        refused = post(2, b"Expect: 100-continue").replace(b"Host: localhost", b"Host: evil.example")
        answer = await server.exchange(refused)
        assert answer.startswith(b"HTTP/1.1 403")


async def test_one_byte_chunks_leave_time_for_others() -> None:
    async with running(RawApp()) as server, await server.connect() as stream:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, post(None) + b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n")
            with trio.fail_after(2):
                await server.assert_serves()
        assert (await read_until(stream, b"10000")).startswith(b"HTTP/1.1 200")


async def test_a_head_that_does_not_end_in_time_is_given_up() -> None:
    async with running(RawApp(), head_timeout_s=0.3) as server:
        async with await server.connect() as stream:
            await stream.send_all(b"GET /health HTTP/1.1\r\n")
            async with trio.open_nursery() as nursery:

                async def drip() -> None:
                    while True:
                        await trio.sleep(0.05)
                        await stream.send_all(b"A: b\r\n")

                nursery.start_soon(drip)
                with trio.fail_after(2):
                    answer = await read_until(stream, b"}}")
                nursery.cancel_scope.cancel()
            assert_error(answer, 408, "invalid_request")
        assert await server.exchange(b"", seconds=2) == b""  # nor does a connection stay that says nothing


async def test_the_time_for_a_head_begins_with_its_first_byte_however_long_the_connection_was_idle() -> None:
    async with running(RawApp(), head_timeout_s=0.5) as server, await server.connect() as stream:
        await stream.send_all(GET_HEALTH)
        await read_until(stream, b"}")
        await trio.sleep(0.6)
        await stream.send_all(GET_HEALTH[:20])
        await trio.sleep(0.2)
        await stream.send_all(GET_HEALTH[20:])
        with trio.fail_after(2):
            assert (await read_until(stream, b"}")).startswith(b"HTTP/1.1 200")


async def test_a_body_that_comes_too_slowly_is_given_up() -> None:
    app = RawApp()
    async with running(app, body_timeout_s=0.3) as server:
        answer = await server.exchange(post(100) + b"{", seconds=2)
        assert_error(answer, 408, "invalid_request")
        await app.disconnected.wait()


async def test_time_that_the_app_takes_is_no_fault_of_the_client() -> None:
    async def slow_app(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(0.6)
        await RawApp().echo(scope, receive, send)

    async with running(slow_app, body_timeout_s=0.3) as server:
        answer = await server.exchange(post(1_000_000, b"Connection: close") + b"x" * 1_000_000)
        assert answer.endswith(b"\r\n\r\n1000000")


async def test_an_idle_connection_is_closed_after_its_time() -> None:
    async with running(RawApp(), keep_alive_s=0.2) as server:
        assert b"200" in await server.exchange(GET_HEALTH, seconds=2)


@pytest.mark.parametrize("path", [b"crash", b"bad-header"])
async def test_a_fault_of_the_app_is_an_internal_error(path: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with running(RawApp()) as server:
        answer = await server.exchange(b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
        assert_error(answer, 500, "internal")
        assert b"fault of the app" not in answer
        await server.assert_serves()
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


@pytest.mark.parametrize("path", [b"crash-late", b"too-much"])
async def test_a_response_that_the_app_breaks_off_is_not_complete(path: bytes) -> None:
    async with running(RawApp()) as server:
        answer = await server.exchange(b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
        assert not answer.endswith(b"0\r\n\r\n")
        await server.assert_serves()


async def test_more_connections_than_allowed_are_turned_away() -> None:
    async with running(RawApp(), max_connections=3) as server:
        held = [await server.connect() for _ in range(3)]
        for stream in held:
            await stream.send_all(GET_HEALTH)
            await read_until(stream, b"}")
        assert_error(await server.exchange(b""), 503, "unavailable")
        await held.pop().aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        await server.assert_serves()
        for stream in held:
            await stream.aclose()


async def test_a_process_out_of_file_descriptors_serves_on_when_it_has_some(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    accept = trio.SocketListener.accept
    calls = 0

    async def failing_accept(self: trio.SocketListener) -> trio.SocketStream:
        nonlocal calls
        calls += 1
        if calls <= 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return await accept(self)

    monkeypatch.setattr(server_module, "NO_ROOM_PAUSE_S", 0.01)
    monkeypatch.setattr(trio.SocketListener, "accept", failing_accept)
    async with running(RawApp()) as server:
        await server.assert_serves()
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


async def test_a_port_in_use_is_named() -> None:
    async with open_listeners([LOOPBACK]) as listeners:
        taken = describe_listener(listeners[0])
        with pytest.raises(ListenError, match=f"127.0.0.1:{taken.port}: address already in use"):  # type: ignore[union-attr]
            async with open_listeners([taken]):
                raise AssertionError("the port is taken")


async def test_an_unknown_host_is_named() -> None:
    with pytest.raises(ListenError, match=r"cannot listen on .*no\.such\.host\.invalid:1: "):
        async with open_listeners([TcpAddress("no.such.host.invalid", 1)]):
            raise AssertionError("there is no such host")


async def test_a_port_is_free_again_at_once() -> None:
    async with running(RawApp()) as server:
        await server.assert_serves()
        address = server.address
    assert isinstance(address, TcpAddress)
    async with running(RawApp(), address=address) as server:
        await server.assert_serves()


async def test_a_unix_socket_serves_with_its_mode_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "daemon.sock"
    async with running(RawApp(), address=UnixAddress(str(path))) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        await server.assert_serves()
    assert not path.exists()


async def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "daemon.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with running(RawApp(), address=UnixAddress(str(path))) as server:
        await server.assert_serves()


async def test_a_unix_socket_that_answers_or_a_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "daemon.sock"
    async with running(RawApp(), address=UnixAddress(str(path))) as server:
        with pytest.raises(ListenError, match="another process answers there"):
            async with open_listeners([UnixAddress(str(path))]):
                raise AssertionError("it is in use")
        await server.assert_serves()
    path.write_text("precious", encoding="utf-8")
    with pytest.raises(ListenError, match="not a socket"):
        async with open_listeners([UnixAddress(str(path))]):
            raise AssertionError("it is a file")
    assert path.read_text(encoding="utf-8") == "precious"


async def test_a_unix_socket_of_a_successor_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "daemon.sock"
    async with open_listeners([UnixAddress(str(path))]):
        path.unlink()
        path.write_text("of the successor", encoding="utf-8")
    assert path.exists()


async def test_nothing_stays_open_when_one_address_fails(tmp_path: Path) -> None:
    path = tmp_path / "daemon.sock"
    (tmp_path / "file").touch()
    with pytest.raises(ListenError, match="file exists"):
        async with open_listeners([UnixAddress(str(path)), UnixAddress(str(tmp_path / "file" / "daemon.sock"))]):
            raise AssertionError("the second cannot be")
    assert not path.exists()


async def test_the_folder_of_a_unix_socket_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "daemon.sock"
    async with open_listeners([UnixAddress(str(path))]):
        assert path.parent.stat().st_mode & 0o077 == 0


async def test_a_socket_that_was_passed_in_is_served() -> None:
    passed = socket.create_server(("127.0.0.1", 0))
    port = passed.getsockname()[1]
    async with open_listeners([], passed=[passed]) as listeners:
        assert describe_listener(listeners[0]) == TcpAddress("127.0.0.1", port)
    with socket.socket() as deaf, pytest.raises(ListenError, match="does not listen"):
        async with open_listeners([], passed=[deaf]):
            raise AssertionError("it does not listen")
