"""An exchange: what the app receives and when, and what it may still send."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pipeline_engine.api.serving.exchange import MAX_BUFFERED_BODY, SENDS_IN_A_TURN, ClientGoneError, Exchange

SCOPE = {"type": "http", "method": "POST", "path": "/v1/jobs"}
START = {"type": "http.response.start", "status": 200, "headers": []}
LAST = {"type": "http.response.body", "body": b"x"}
DISCONNECT = {"type": "http.disconnect"}


class Connection:
    """The connection's side; `failure` is raised by the next write."""

    def __init__(self, app: Any) -> None:
        self.sent: list[Any] = []
        self.asked = 0
        self.failure: Exception | None = None
        self.writable = trio.Event()
        self.writable.set()
        self.exchange = Exchange(app, dict(SCOPE), send=self.send, ask_for_body=self.ask_for_body)

    async def send(self, message: Any) -> None:
        await self.writable.wait()
        if self.failure is not None:
            raise self.failure
        self.sent.append(message)

    async def ask_for_body(self) -> None:
        self.asked += 1


def body(data: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


async def unused_app(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("these tests are the app")


async def test_pieces_that_wait_arrive_as_one_and_the_end_is_told_once(nursery: trio.Nursery) -> None:
    exchange = Connection(unused_app).exchange
    await exchange.put(body(b"ab"))
    await exchange.put(body(b"cd"))
    await exchange.put(body(b"", more=False))
    assert await exchange.receive() == body(b"abcd", more=False)
    with trio.move_on_after(0) as scope:
        await exchange.receive()
    assert scope.cancelled_caught
    await exchange.put(DISCONNECT)
    assert await exchange.receive() == DISCONNECT


async def test_the_body_is_asked_for_only_when_nothing_waits(nursery: trio.Nursery) -> None:
    connection = Connection(unused_app)
    await connection.exchange.put(body(b"ab"))
    await connection.exchange.receive()
    assert connection.asked == 0
    nursery.start_soon(connection.exchange.receive)
    await wait_all_tasks_blocked()
    assert connection.asked == 1
    await connection.exchange.put(body(b"", more=False))


async def test_an_app_that_is_behind_stops_the_reading_until_it_takes_or_ends(nursery: trio.Nursery) -> None:
    exchange = Connection(unused_app).exchange
    full = body(b"x" * MAX_BUFFERED_BODY)
    nursery.start_soon(exchange.put, full)
    await wait_all_tasks_blocked()
    assert len(nursery.child_tasks) == 1
    await exchange.receive()
    await wait_all_tasks_blocked()
    assert not nursery.child_tasks
    nursery.start_soon(exchange.put, full)
    await wait_all_tasks_blocked()
    await exchange.put(DISCONNECT)
    await wait_all_tasks_blocked()
    assert not nursery.child_tasks


async def test_the_app_hears_no_disconnect_inside_its_last_send(nursery: trio.Nursery) -> None:
    connection = Connection(unused_app)
    exchange = connection.exchange
    heard: list[Any] = []

    async def listen() -> None:
        heard.append(await exchange.receive())

    await exchange.send(START)
    connection.writable = trio.Event()
    nursery.start_soon(exchange.send, LAST)
    nursery.start_soon(listen)
    await wait_all_tasks_blocked()
    await exchange.put(DISCONNECT)  # as Hypercorn does when the response is complete
    await wait_all_tasks_blocked()
    assert heard == []
    connection.writable.set()
    await wait_all_tasks_blocked()
    assert heard == [DISCONNECT]
    assert connection.sent == [START, LAST]


async def test_what_the_app_does_is_cancelled_when_the_client_leaves(caplog: pytest.LogCaptureFixture) -> None:
    began = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with exchange.disconnect_scope() as disconnected:
            began.set()
            await trio.sleep_forever()
        assert disconnected.cancelled_caught
        raise ValueError("what an app makes of it")

    exchange = Connection(app).exchange
    async with trio.open_nursery() as nursery:
        nursery.start_soon(exchange.run)
        await began.wait()
        await exchange.put(DISCONNECT)
    assert exchange.disconnect_scope().cancel_called  # nor does anything begin for a client that has left
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []


async def test_what_an_app_does_not_read_neither_piles_up_nor_stops_the_reading(nursery: trio.Nursery) -> None:
    exchange = Connection(unused_app).exchange
    full = body(b"x" * MAX_BUFFERED_BODY)
    nursery.start_soon(exchange.put, full)
    await wait_all_tasks_blocked()
    exchange.disconnect_scope()
    await wait_all_tasks_blocked()
    assert not nursery.child_tasks
    for _ in range(3):
        with trio.fail_after(1):
            await exchange.put(full)


async def test_an_app_that_is_over_stops_no_reading(nursery: trio.Nursery) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(ClientGoneError):
            await send(START)

    connection = Connection(app)
    connection.failure = ClientGoneError("gone")
    nursery.start_soon(connection.exchange.put, body(b"x" * MAX_BUFFERED_BODY))
    await wait_all_tasks_blocked()
    assert len(nursery.child_tasks) == 1
    await connection.exchange.run()
    await wait_all_tasks_blocked()
    assert not nursery.child_tasks


async def test_the_end_of_the_last_send_cancels_nothing(nursery: trio.Nursery) -> None:
    connection = Connection(unused_app)
    scope = connection.exchange.disconnect_scope()
    await connection.exchange.send(START)
    connection.writable = trio.Event()
    nursery.start_soon(connection.exchange.send, LAST)
    await wait_all_tasks_blocked()
    await connection.exchange.put(DISCONNECT)  # as Hypercorn does when the response is complete
    connection.writable.set()
    await wait_all_tasks_blocked()
    assert connection.sent == [START, LAST]
    assert not scope.cancel_called


async def test_an_app_that_streams_without_waiting_lets_others_run() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(10 * SENDS_IN_A_TURN):
            await send({**LAST, "more_body": True})

    async def send(message: Any) -> None:
        """As a socket with room takes it: at once."""

    async def ask_for_body() -> None:
        raise AssertionError("nobody reads")

    turns = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Exchange(app, dict(SCOPE), send=send, ask_for_body=ask_for_body).run)
        while nursery.child_tasks:
            turns += 1
            await trio.lowlevel.checkpoint()
    assert turns > 5


async def test_an_app_that_ends_early_is_broken_off() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)

    connection = Connection(app)
    await connection.exchange.run()
    assert connection.sent == [START, None]


async def test_a_fault_of_the_app_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("a fault")

    connection = Connection(app)
    await connection.exchange.run()
    assert [record.getMessage() for record in caplog.records] == ["POST /v1/jobs failed"]
    assert connection.sent == [None]


async def test_what_an_app_makes_of_a_client_that_left_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    async def told_by_send(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send(START)
        except OSError:
            raise ValueError("what a framework makes of it") from None

    async def told_by_receive(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == DISCONNECT
        raise ValueError("what a framework makes of it")

    for app in (told_by_send, told_by_receive):
        connection = Connection(app)
        await connection.exchange.put(DISCONNECT)
        await connection.exchange.run()
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []


async def test_nothing_is_sent_after_a_write_that_failed() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(ClientGoneError):
            await send(START)

    connection = Connection(app)
    connection.failure = ClientGoneError("gone")
    await connection.exchange.run()
    assert connection.sent == []


async def test_nothing_is_sent_after_a_write_that_the_app_gave_up(autojump_clock: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with trio.move_on_after(1):
            await send(START)

    connection = Connection(app)
    connection.writable = trio.Event()
    with trio.fail_after(5):
        await connection.exchange.run()
    assert connection.sent == []


async def test_an_app_that_gives_up_between_two_pieces_is_broken_off() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with trio.CancelScope() as scope_of_app:
            for number in range(SENDS_IN_A_TURN):
                if number == SENDS_IN_A_TURN - 1:
                    scope_of_app.cancel()
                await send({**LAST, "more_body": True})
        assert scope_of_app.cancelled_caught

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask_for_body() -> None:
        raise AssertionError("nobody reads")

    sent: list[Any] = []
    await Exchange(app, dict(SCOPE), send=send, ask_for_body=ask_for_body).run()
    assert len(sent) == SENDS_IN_A_TURN + 1
    assert sent[-1] is None
