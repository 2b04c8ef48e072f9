"""The threads in which plain handlers run: so many at a time, beside those that were abandoned."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

log = logging.getLogger(__name__)

THREADS = 32  # in which plain handlers run at the same time
MAX_ABANDONED = 128  # threads that may go on beside them for jobs that are over; more take the places of others

Run = Callable[[Callable[[Any], Any], Any], Awaitable[Any]]


class HandlerThreads:
    """Places for plain handlers. A thread cannot be stopped: one whose job is over goes on until its handler returns.

    For such an abandoned one another place is opened, or handlers that hang would stop all others of all jobs. There is
    a bound to that, for each is a thread and what it holds.
    """

    def __init__(self, *, threads: int = THREADS, max_abandoned: int = MAX_ABANDONED) -> None:
        self._threads = threads
        self._max_abandoned = max_abandoned
        self._places = trio.CapacityLimiter(threads)
        self.abandoned = 0
        self._told = 0  # the last number of which the log was told; 0 again when most are gone

    @property
    def running(self) -> int:
        """In how many threads handlers run for somebody."""
        return int(self._places.borrowed_tokens) - self.abandoned

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[Run]:
        """Wait for a place; what the block gets runs a function of one argument in a thread, once."""
        place = _Place(self)
        await self._places.acquire_on_behalf_of(place)
        try:
            yield place.run
        finally:
            place.leave()

    # for the places

    def free(self, place: _Place, *, was_abandoned: bool) -> None:
        self._places.release_on_behalf_of(place)
        if was_abandoned:
            self.abandoned -= 1
            self._fit()
            self._told = self._told if self.abandoned >= self._threads // 2 else 0

    def abandon(self) -> None:
        self.abandoned += 1
        self._fit()
        for level, words in (
            (self._threads, "do their handlers hang?"),
            (self._max_abandoned + self._threads, "no other plain handler can run until one of them returns"),
        ):
            if self._told < level <= self.abandoned:
                self._told = level
                log.warning("%d threads still run handlers of jobs that are over: %s", self.abandoned, words)

    def _fit(self) -> None:
        self._places.total_tokens = self._threads + min(self.abandoned, self._max_abandoned)


class _Place:
    """One place, which is what `to_thread.run_sync` takes for a limiter: it is given back when the thread has ended."""

    def __init__(self, owner: HandlerThreads) -> None:
        self._owner = owner
        self._has_thread = False
        self._is_free = False
        self._is_abandoned = False

    async def run(self, function: Callable[[Any], Any], argument: Any) -> Any:
        return await trio.to_thread.run_sync(function, argument, abandon_on_cancel=True, limiter=self)  # type: ignore[arg-type]  # anything with these two methods will do

    async def acquire_on_behalf_of(self, _: object) -> None:
        self._has_thread = True

    def release_on_behalf_of(self, _: object) -> None:
        self._is_free = True
        self._owner.free(self, was_abandoned=self._is_abandoned)

    def leave(self) -> None:
        """Nobody waits for the thread any more, if it still runs."""
        if not self._has_thread:
            self.release_on_behalf_of(self)
        elif not self._is_free:
            self._is_abandoned = True
            self._owner.abandon()
