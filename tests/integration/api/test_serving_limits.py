"""Real sockets: what is not HTTP, too large, too slow or too much, and faults of the app."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
import trio
from tests.serving_setting import (
    APPS,
    GET_HEALTH,
    PIECE,
    RawApp,
    assert_error,
    post,
    read_all,
    read_until,
    running,
    split,
)

from pipeline_engine.api.serving import server as server_module

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
    "length and encoding": b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
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
