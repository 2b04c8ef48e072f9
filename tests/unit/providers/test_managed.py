"""When model servers are started and stopped, in virtual time and without processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.providers.managed import ModelServer, ModelServers, open_model_servers
from pipeline_engine.providers.server_process import ServerSettings

SETTINGS = ServerSettings(
    command=("server",), ready="http://127.0.0.1:1/", start_timeout_s=60, idle_stop_s=300, env=(), cwd=None
)
START_TIME = 2.0  # seconds
STOP_TIME = 1.0
BROKEN = ProviderError(ErrorCode.PROVIDER_UNREACHABLE, "the connection broke", retryable=True)


class FakeServer:
    """Takes START_TIME to start and STOP_TIME to stop; `history` tells when."""

    port = 4711

    def __init__(self) -> None:
        self.history: list[tuple[str, float]] = []
        self.failure: Exception | None = None
        self.died = trio.Event()

    @asynccontextmanager
    async def open(self, settings: ServerSettings) -> AsyncIterator[FakeServer]:
        self._note(f"start {settings.name}")
        await trio.sleep(START_TIME)
        if self.failure is not None:
            raise self.failure
        self.died = trio.Event()
        try:
            yield self
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(STOP_TIME)
            self._note(f"stopped {settings.name}")

    async def wait(self) -> ProviderError:
        await self.died.wait()
        return ProviderError(ErrorCode.PROVIDER_UNREACHABLE, "it died", retryable=True, details={"stderr": "oom"})

    def _note(self, what: str) -> None:
        self.history.append((what, trio.current_time()))


@pytest.fixture
def fake() -> FakeServer:
    return FakeServer()


@pytest.fixture
async def servers(fake: FakeServer) -> AsyncIterator[ModelServers]:
    async with open_model_servers(fake.open) as opened:
        yield opened


async def use(server: ModelServer, seconds: float = 1.0) -> int | None:
    async with server.in_use() as port:
        await trio.sleep(seconds)
    return port


async def test_nothing_is_started_before_a_call_needs_it(
    servers: ModelServers, fake: FakeServer, autojump_clock: MockClock
) -> None:
    servers.acquire(SETTINGS)
    await trio.sleep(1000)
    assert fake.history == []


async def test_calls_share_one_start_and_one_server(
    servers: ModelServers, fake: FakeServer, autojump_clock: MockClock
) -> None:
    server = servers.acquire(SETTINGS)
    assert servers.acquire(replace(SETTINGS)) is server
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(use, server)
    assert trio.current_time() - began == pytest.approx(START_TIME + 1)
    assert await use(server) == 4711
    assert fake.history == [("start server", began)]


async def test_an_idle_server_is_stopped_and_the_next_call_starts_it_again(
    servers: ModelServers, fake: FakeServer, autojump_clock: MockClock
) -> None:
    server = servers.acquire(SETTINGS)
    await use(server)
    for _ in range(3):  # each call puts the stop off
        await trio.sleep(299)
        await use(server)
    idle_since = trio.current_time()
    await trio.sleep(400)
    [(what, when)] = fake.history[1:]
    assert what == "stopped server"
    assert when == pytest.approx(idle_since + 300 + STOP_TIME)
    await use(server)
    assert [what for what, _ in fake.history] == ["start server", "stopped server", "start server"]


async def test_a_long_call_is_not_idleness(servers: ModelServers, fake: FakeServer, autojump_clock: MockClock) -> None:
    await use(servers.acquire(SETTINGS), 5000)
    assert len(fake.history) == 1


async def test_a_call_that_comes_while_the_server_stops_waits_for_the_next_one(
    servers: ModelServers, fake: FakeServer, autojump_clock: MockClock
) -> None:
    server = servers.acquire(SETTINGS)
    await use(server)
    await trio.sleep(300 + STOP_TIME / 2)
    began = trio.current_time()
    await use(server, 0)
    assert [what for what, _ in fake.history] == ["start server", "stopped server", "start server"]
    assert trio.current_time() - began == pytest.approx(STOP_TIME / 2 + START_TIME)


async def test_a_failed_start_fails_all_who_wait_and_the_next_call_tries_again(
    servers: ModelServers, fake: FakeServer, autojump_clock: MockClock
) -> None:
    server = servers.acquire(SETTINGS)
    fake.failure = ProviderError(ErrorCode.PROVIDER_UNREACHABLE, "no such file", details={"stderr": "x"})
    errors: list[ProviderError] = []

    async def fail() -> None:
        with pytest.raises(ProviderError, match="no such file") as caught:
            await use(server)
        errors.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        nursery.start_soon(fail)
    assert len(fake.history) == 1
    assert errors[0] is not errors[1]
    assert [error.details for error in errors] == [{"stderr": "x"}] * 2
    fake.failure = None
    assert await use(server) == 4711


async def test_a_fault_of_ours_in_a_start_fails_its_calls_and_not_the_daemon(
    servers: ModelServers, fake: FakeServer, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    server = servers.acquire(SETTINGS)
    fake.failure = UnicodeError("label too long")
    with pytest.raises(ProviderError, match="could not be run: UnicodeError: label too long") as caught:
        await use(server)
    assert not caught.value.retryable
    assert "Traceback" in caplog.text
    fake.failure = None
    assert await use(server) == 4711


async def test_a_dead_server_fails_its_calls_retryably_and_is_started_again(
    servers: ModelServers, fake: FakeServer, autojump_clock: MockClock
) -> None:
    server = servers.acquire(SETTINGS)
    with pytest.raises(ProviderError, match="it died") as caught:  # noqa: PT012 - the error comes from leaving the block
        async with server.in_use():
            fake.died.set()
            raise BROKEN
    assert caught.value.retryable
    assert caught.value.details == {"stderr": "oom"}
    assert await use(server) == 4711
    assert [what for what, _ in fake.history] == ["start server", "stopped server", "start server"]


async def test_a_broken_connection_to_a_server_that_lives_stays_what_it_is(
    servers: ModelServers, autojump_clock: MockClock
) -> None:
    server = servers.acquire(SETTINGS)
    with pytest.raises(ProviderError) as caught:
        async with server.in_use():
            raise BROKEN
    assert caught.value is BROKEN


async def test_a_cancelled_call_leaves_the_start_to_the_others(
    servers: ModelServers, fake: FakeServer, autojump_clock: MockClock
) -> None:
    server = servers.acquire(SETTINGS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(use, server)
        with trio.move_on_after(START_TIME / 2) as scope:
            await use(server)
    assert scope.cancelled_caught
    await trio.sleep(500)
    assert [what for what, _ in fake.history] == ["start server", "stopped server"]


async def test_a_released_server_stops_at_once(
    servers: ModelServers, fake: FakeServer, autojump_clock: MockClock
) -> None:
    server = servers.acquire(SETTINGS)
    servers.acquire(SETTINGS)
    await use(server)
    servers.release(server)
    await trio.sleep(10)
    assert len(fake.history) == 1  # somebody else holds it
    servers.release(server)
    await server.ended.wait()
    assert [what for what, _ in fake.history] == ["start server", "stopped server"]
    assert servers.acquire(SETTINGS) is not server


async def test_the_next_server_at_an_address_starts_when_the_one_before_is_gone(
    servers: ModelServers, fake: FakeServer, autojump_clock: MockClock
) -> None:
    old = servers.acquire(SETTINGS)
    new = servers.acquire(replace(SETTINGS, command=("newer",)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(use, old, 10)
        await trio.sleep(5)
        servers.release(old)
        nursery.start_soon(use, new)
    assert [what for what, _ in fake.history] == ["start server", "stopped server", "start newer"]
    with pytest.raises(ProviderError, match="has been removed"):
        await use(old)


async def test_all_servers_are_stopped_at_the_end(fake: FakeServer, autojump_clock: MockClock) -> None:
    async with open_model_servers(fake.open) as servers:
        await use(servers.acquire(SETTINGS))
        async with trio.open_nursery() as nursery:
            starting = servers.acquire(replace(SETTINGS, command=("other",)))
            nursery.start_soon(use, starting)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert [what for what, _ in fake.history] == ["start server", "start other", "stopped server"]


async def test_an_error_of_the_block_comes_out_as_it_is(fake: FakeServer, autojump_clock: MockClock) -> None:
    with pytest.raises(ValueError, match="mine"):
        async with open_model_servers(fake.open):
            raise ValueError("mine")
