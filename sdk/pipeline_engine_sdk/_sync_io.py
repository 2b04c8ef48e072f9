"""The requests of the client for threads, and the streams of what it follows."""

from __future__ import annotations

from collections.abc import Iterator
from time import sleep
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from . import _calls
from ._calls import Call, read_answer
from ._client import ClientCore
from ._errors import ClientClosed
from ._following import Following
from ._models import Event
from ._retries import Attempts
from ._settings import SILENCE_TIMEOUT, open_transport

T = TypeVar("T")


class Caller:
    """Sends the calls of one client."""

    def __init__(self, core: ClientCore, *, timeout_s: float | None, transport: httpx.BaseTransport | None) -> None:
        self.core = core
        self.http = httpx.Client(transport=transport or open_transport(core.target), trust_env=False)
        self.streams: set[EventStream] = set()  # those that have a connection
        self._timeout_s = timeout_s

    def close(self) -> None:
        try:
            for stream in list(self.streams):
                stream.close()
        finally:
            self.http.close()

    def call(self, call: Call[T], *, timeout_s: float | None) -> T:
        return self.perform(call, self.core.attempts(call), timeout_s=self.timeout(timeout_s))

    def patiently(self, call: Call[T], give_up_after_s: float | None) -> T:
        attempts = self.core.attempts(call, give_up_after_s=give_up_after_s, is_long=True)
        return self.perform(call, attempts, timeout_s=SILENCE_TIMEOUT)

    def perform(self, call: Call[T], attempts: Attempts, *, timeout_s: float | None) -> T:
        while True:
            response = self.open(call, attempts, timeout_s=timeout_s)
            try:
                content = response.read()
            except httpx.HTTPError as exc:
                pause = attempts.after_failure(exc)
            else:
                return read_answer(call, content)
            finally:
                response.close()
            sleep(pause)

    def open(self, call: Call[Any], attempts: Attempts, *, timeout_s: float | None) -> httpx.Response:
        """The successful answer to a call, its body not yet read."""
        while True:
            attempts.begin()
            try:
                response = self.send(self.core.request(call, timeout_s=timeout_s))
                if response.is_success:
                    return response
                try:
                    content = response.read()
                finally:
                    response.close()
            except httpx.HTTPError as exc:
                pause = attempts.after_failure(exc)
            else:
                pause = attempts.after_answer(response.status_code, response.headers, content)
            sleep(pause)

    def send(self, request: httpx.Request) -> httpx.Response:
        """The answer, its body not yet read. Raises ClientClosed."""
        if self.http.is_closed:
            raise ClientClosed("this client is closed; open another one")
        return self.http.send(request, stream=True)

    def timeout(self, timeout_s: float | None) -> float | None:
        return self._timeout_s if timeout_s is None else timeout_s


class EventStream:
    """The events of a job, as an iterator.

    Its connection is closed at the end, by `close` or `with`, and at the latest with the client: leaving a
    `for` early needs no care.
    """

    def __init__(self, caller: Caller, following: Following, give_up_after_s: float | None) -> None:
        self._caller = caller
        self._following = following
        self._give_up_after_s = give_up_after_s
        self._events: list[Event] = []  # that have come and wait to be given, the next one last
        self._connection: tuple[httpx.Response, Iterator[bytes]] | None = None
        self._is_closed = False

    @property
    def job_id(self) -> str | None:
        """The job that is followed; None until a submitted one is known."""
        return self._following.job_id

    def __iter__(self) -> EventStream:
        return self

    def __next__(self) -> Event:
        try:
            while not self._events and not self._is_closed and not self._following.finished:
                self._read_more()
        except BaseException:
            self.close()
            raise
        if not self._events:
            self.close()
            raise StopIteration
        return self._events.pop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. The job goes on."""
        self._is_closed = True
        self._disconnect()

    def _read_more(self) -> None:
        """Wait for the next piece of the stream, or for what takes the place of a broken one."""
        pause = 0.0
        try:
            if self._connection is None:
                pause = self._connect()
            elif (piece := next(self._connection[1], None)) is not None:
                self._events = self._following.feed(piece)[::-1]
            else:
                self._disconnect()
                pause = self._ended()
        except httpx.HTTPError as exc:
            self._disconnect()
            pause = self._following.broke(exc)
        if pause:
            sleep(pause)

    def _connect(self) -> float:
        call = self._following.next_call()
        response = self._caller.send(self._caller.core.stream_request(call))
        if response.is_success:
            self._connection = response, response.iter_bytes()
            self._caller.streams.add(self)
            self._following.opened()
            return 0.0
        try:
            content = response.read()
        finally:
            response.close()
        return self._following.refused(call, response.status_code, response.headers, content)

    def _ended(self) -> float:
        job = None
        if self._following.asks_for_job() and self.job_id is not None:
            job = self._caller.patiently(_calls.get_job(self.job_id), self._give_up_after_s)
        return self._following.ended(job)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._caller.streams.discard(self)
        if connection is not None:
            connection[0].close()
