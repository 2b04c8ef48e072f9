"""Real sockets: what clients do to connections, and that the server and its other clients live on."""

from __future__ import annotations

import gc
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
import trio
from tests.serving_setting import (
    APPS,
    GET_HEALTH,
    GET_STREAM,
    RawApp,
    count_open_files,
    make_quart_app,
    post,
    read_all,
    read_until,
    reset,
    running,
    until,
)

from pipeline_engine.api.serving.exchange import DISCONNECT_SCOPE
from pipeline_engine.listen_addresses import TcpAddress


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


async def test_a_client_that_leaves_behind_a_body_that_nobody_reads_is_noticed() -> None:
    cancelled = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        with scope["extensions"][DISCONNECT_SCOPE]() as disconnected:
            await trio.sleep_forever()
        assert disconnected.cancelled_caught
        cancelled.set()

    async with running(app) as server:
        async with await server.connect() as stream:
            await stream.send_all(b"GET /stream HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
            await stream.send_all(b"x" * 1_000_000)
        with trio.fail_after(2):
            await cancelled.wait()


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


async def test_a_reader_that_has_stopped_long_ago_does_not_get_the_grace_of_a_stop() -> None:
    app = RawApp()
    async with running(app, grace_s=1.0) as server, await server.connect() as stuck, await server.connect() as idle:
        await stuck.send_all(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await idle.send_all(GET_STREAM)
        await read_until(idle, b"{}\n")
        await trio.sleep(1.2)
        assert app.running == 2
        server.stop.set()
        await until(lambda: app.running == 1)
        assert not server.done.is_set()


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
