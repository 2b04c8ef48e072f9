"""The life of the model servers that we manage: up while calls need them, down when they were idle."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Protocol

import trio

from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.providers.server_process import ServerSettings

_log = logging.getLogger(__name__)

#: A connection breaks a moment before its server's end is noticed; so long a call waits to learn of that end.
END_NOTICE = 0.2  # seconds


class Running(Protocol):
    """A server that is up."""

    @property
    def port(self) -> int | None:
        """The port that was found for it; None if its addresses are fixed."""
        ...

    async def wait(self) -> ProviderError:
        """Returns when it has ended by itself, with the error that this is for the calls under way."""
        ...


#: Starts a server and waits until it is ready; ends it on leaving. Raises ProviderError.
OpenServer = Callable[[ServerSettings], AbstractAsyncContextManager[Running]]


class _Start:
    """One start of a server, for all calls that wait for it."""

    def __init__(self) -> None:
        self.settled = trio.Event()
        self.running: Running | None = None
        self.error: ProviderError | None = None

    async def result(self) -> Running:
        await self.settled.wait()
        if self.error is not None:
            # Each call has its own error: whoever handles it adds to its details.
            error = self.error
            raise ProviderError(error.code, error.message, retryable=error.retryable, details=error.details)
        assert self.running is not None
        return self.running


class ModelServer:
    """One server, shared by all calls that need it. Its process belongs to the task of `run`."""

    def __init__(self, settings: ServerSettings, *, open_server: OpenServer) -> None:
        self.settings = settings
        self._open_server = open_server
        self._start: _Start | None = None
        self._calls = 0
        self._changed = trio.Event()
        self.is_retired = False
        self.ended = trio.Event()

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[int | None]:
        """Keep the server up while in the block, and start it before if need be; gives the port found for it.

        Raises ProviderError if it cannot be started, or if it ends in the middle of a call.
        """
        if self.is_retired:
            message = f"the profile of the model server {self.settings.name} has been removed"
            raise ProviderError(ErrorCode.PROVIDER_UNREACHABLE, message)
        self._calls += 1
        try:
            start = self._start = self._start or _Start()
            self._notify()
            running = await start.result()
            try:
                yield running.port
            except ProviderError as exc:
                if exc.code is ErrorCode.PROVIDER_UNREACHABLE:
                    with trio.move_on_after(END_NOTICE, shield=True):
                        error = await running.wait()
                        self._forget(start)
                        raise error from exc
                raise
        finally:
            self._calls -= 1
            self._notify()

    def retire(self) -> None:
        """Take no further call, and stop when those under way have ended."""
        self.is_retired = True
        self._notify()

    async def run(self) -> None:
        """Start the server whenever calls need it, and stop it when it was idle, until it is retired."""
        try:
            while self._calls or not self.is_retired:
                if self._start is None:
                    await self._changed.wait()
                else:
                    await self._run_once(self._start)
        finally:
            self.ended.set()

    async def _run_once(self, start: _Start) -> None:
        try:
            async with self._open_server(self.settings) as running:
                start.running = running
                start.settled.set()
                await self._until_useless(running)
                self._forget(start)
        except ProviderError as exc:
            self._fail(start, exc)
        except Exception as exc:  # noqa: BLE001 - a fault of ours must end its calls, and not the daemon
            _log.exception("the model server %s failed", self.settings.name)
            message = f"the model server {self.settings.name} could not be run: {type(exc).__name__}: {exc}"
            self._fail(start, ProviderError(ErrorCode.PROVIDER_UNREACHABLE, message))

    def _fail(self, start: _Start, error: ProviderError) -> None:
        start.error = error
        start.settled.set()
        self._forget(start)

    def _forget(self, start: _Start) -> None:
        """From here on a call begins a new start, which comes when this one's process is gone."""
        if self._start is start:
            self._start = None

    async def _until_useless(self, running: Running) -> None:
        async def watch() -> None:
            error = await running.wait()
            _log.warning("%s", error.message)
            life_nursery.cancel_scope.cancel()

        async with trio.open_nursery() as life_nursery:
            life_nursery.start_soon(watch)
            await self._until_idle()
            life_nursery.cancel_scope.cancel()

    async def _until_idle(self) -> None:
        """Return, with no call under way, when none came for the idle time."""
        while True:
            while self._calls:
                await self._changed.wait()
            if self.is_retired:
                return
            with trio.move_on_after(self.settings.idle_stop_s) as patience:
                await self._changed.wait()
            # A call may have come at the very moment.
            if patience.cancelled_caught and not self._calls:
                _log.info("model server %s is stopped: it was idle", self.settings.name)
                return

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class ModelServers:
    """All servers that profiles name; who acquires one releases it. Use `open_model_servers`."""

    def __init__(self, *, nursery: trio.Nursery, open_server: OpenServer) -> None:
        self._nursery = nursery
        self._open_server = open_server
        self._servers: dict[ServerSettings, ModelServer] = {}
        self._holders: dict[ModelServer, int] = {}
        self._numbers: dict[ModelServer, int] = {}  # in the order in which they were made, until they have ended
        self._next_number = itertools.count()

    def acquire(self, settings: ServerSettings) -> ModelServer:
        server = self._servers.get(settings)
        if server is None:
            number = next(self._next_number)
            server = ModelServer(settings, open_server=partial(self._open_in_turn, number))
            self._servers[settings] = server
            self._holders[server] = 0
            self._numbers[server] = number
            self._nursery.start_soon(self._run, server)
        self._holders[server] += 1
        return server

    def release(self, server: ModelServer) -> None:
        """The last one to release a server retires it."""
        self._holders[server] -= 1
        if not self._holders[server]:
            del self._holders[server], self._servers[server.settings]
            server.retire()

    async def _run(self, server: ModelServer) -> None:
        try:
            await server.run()
        finally:
            del self._numbers[server]

    @asynccontextmanager
    async def _open_in_turn(self, number: int, settings: ServerSettings) -> AsyncIterator[Running]:
        """Start a server when those are gone that stood at its address under a profile that has been replaced."""
        if not settings.wants_port:
            before = [
                one for one, its in self._numbers.items() if its < number and one.settings.ready == settings.ready
            ]
            for server in before:
                if server.is_retired:
                    await server.ended.wait()
        async with self._open_server(settings) as running:
            yield running


@asynccontextmanager
async def open_model_servers(open_server: OpenServer) -> AsyncIterator[ModelServers]:
    """Servers that are all stopped at the end; then no call may be under way."""
    failure: Exception | None = None
    async with trio.open_nursery() as server_nursery:
        try:
            yield ModelServers(nursery=server_nursery, open_server=open_server)
        except Exception as exc:  # noqa: BLE001 - carried round the nursery, which would wrap it in a group
            failure = exc
        server_nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
