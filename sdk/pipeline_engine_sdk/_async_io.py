"""The requests of the client for trio and asyncio, and the streams of what it follows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from . import _calls
from ._calls import Call, read_answer
from ._client import ClientCore, JobPages
from ._errors import ClientClosed
from ._event_loops import LoopGuard, sleep
from ._following import Following
from ._models import Event, Job
from ._retries import Attempts
from ._settings import SILENCE_TIMEOUT, open_async_transport

T = TypeVar("T")


class AsyncCaller:
    """Sends the calls of one client, in the one event loop that its connections belong to."""

    def __init__(
        self, core: ClientCore, *, timeout_s: float | None, transport: httpx.AsyncBaseTransport | None
    ) -> None:
        self.core = core
        self.http = httpx.AsyncClient(transport=transport or open_async_transport(core.target), trust_env=False)
        self.streams: set[AsyncEventStream] = set()  # those that have a connection
        self._timeout_s = timeout_s
        self._loop = LoopGuard()

    def check_loop(self) -> None:
        """Raises WrongEventLoop."""
        self._loop.check()

    async def aclose(self) -> None:
        self.check_loop()
        try:
            for stream in list(self.streams):
                await stream.aclose()
        finally:
            await self.http.aclose()

    async def call(self, call: Call[T], *, timeout_s: float | None) -> T:
        return await self.perform(call, self.core.attempts(call), timeout_s=self.timeout(timeout_s))

    async def patiently(self, call: Call[T], give_up_after_s: float | None) -> T:
        attempts = self.core.attempts(call, give_up_after_s=give_up_after_s, is_long=True)
        return await self.perform(call, attempts, timeout_s=SILENCE_TIMEOUT)

    async def perform(self, call: Call[T], attempts: Attempts, *, timeout_s: float | None) -> T:
        while True:
            response = await self.open(call, attempts, timeout_s=timeout_s)
            try:
                content = await response.aread()
            except httpx.HTTPError as exc:
                pause = attempts.after_failure(exc)
            else:
                return read_answer(call, content)
            finally:
                # httpcore shields this from cancellation, and it waits for nobody: it closes a socket.
                await response.aclose()
            await sleep(pause)

    async def open(self, call: Call[Any], attempts: Attempts, *, timeout_s: float | None) -> httpx.Response:
        """The successful answer to a call, its body not yet read."""
        self.check_loop()
        while True:
            attempts.begin()
            try:
                response = await self.send(self.core.request(call, timeout_s=timeout_s))
                if response.is_success:
                    return response
                try:
                    content = await response.aread()
                finally:
                    await response.aclose()
            except httpx.HTTPError as exc:
                pause = attempts.after_failure(exc)
            else:
                pause = attempts.after_answer(response.status_code, response.headers, content)
            await sleep(pause)

    async def send(self, request: httpx.Request) -> httpx.Response:
        """The answer, its body not yet read. Raises ClientClosed."""
        if self.http.is_closed:
            raise ClientClosed("this client is closed; open another one")
        return await self.http.send(request, stream=True)

    def timeout(self, timeout_s: float | None) -> float | None:
        return self._timeout_s if timeout_s is None else timeout_s


class AsyncEventStream:
    """The events of a job, as an async iterator.

    Its connection is closed at the end, by `aclose` or `async with`, and at the latest with the client: leaving an
    `async for` early needs no care.
    """

    def __init__(self, caller: AsyncCaller, following: Following, give_up_after_s: float | None) -> None:
        self._caller = caller
        self._following = following
        self._give_up_after_s = give_up_after_s
        self._events: list[Event] = []  # that have come and wait to be given, the next one last
        self._connection: tuple[httpx.Response, AsyncIterator[bytes]] | None = None
        self._is_closed = False

    @property
    def job_id(self) -> str | None:
        """The job that is followed; None until a submitted one is known."""
        return self._following.job_id

    def __aiter__(self) -> AsyncEventStream:
        return self

    async def __anext__(self) -> Event:
        self._caller.check_loop()
        try:
            while not self._events and not self._is_closed and not self._following.finished:
                await self._read_more()
        except BaseException:
            await self.aclose()
            raise
        if not self._events:
            await self.aclose()
            raise StopAsyncIteration
        return self._events.pop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection. The job goes on."""
        self._is_closed = True
        await self._disconnect()

    async def _read_more(self) -> None:
        """Wait for the next piece of the stream, or for what takes the place of a broken one."""
        pause = 0.0
        try:
            if self._connection is None:
                pause = await self._connect()
            elif (piece := await anext(self._connection[1], None)) is not None:
                self._events = self._following.feed(piece)[::-1]
            else:
                await self._disconnect()
                pause = await self._ended()
        except httpx.HTTPError as exc:
            await self._disconnect()
            pause = self._following.broke(exc)
        if pause:
            await sleep(pause)

    async def _connect(self) -> float:
        call = self._following.next_call()
        response = await self._caller.send(self._caller.core.stream_request(call))
        if response.is_success:
            self._connection = response, response.aiter_bytes()
            self._caller.streams.add(self)
            self._following.opened()
            return 0.0
        try:
            content = await response.aread()
        finally:
            await response.aclose()
        return self._following.refused(call, response.status_code, response.headers, content)

    async def _ended(self) -> float:
        job = None
        if self._following.asks_for_job() and self.job_id is not None:
            job = await self._caller.patiently(_calls.get_job(self.job_id), self._give_up_after_s)
        return self._following.ended(job)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._caller.streams.discard(self)
        if connection is not None:
            response, pieces = connection
            await response.aclose()
            # The generators of httpx and httpcore lie in each other, and closing the outer one leaves the rest to the
            # garbage collector, of which trio warns. Reading on from the closed connection ends them all at once.
            with suppress(httpx.HTTPError, httpx.StreamError):
                async for _ in pieces:
                    pass


class AsyncJobs:
    """Jobs of a list, as an async iterator."""

    def __init__(self, caller: AsyncCaller, pages: JobPages) -> None:
        self._caller = caller
        self._pages = pages

    def __aiter__(self) -> AsyncJobs:
        return self

    async def __anext__(self) -> Job:
        while (call := self._pages.next_call()) is not None:
            self._pages.take(await self._caller.call(call, timeout_s=None))
        job = self._pages.pop()
        if job is None:
            raise StopAsyncIteration
        return job
