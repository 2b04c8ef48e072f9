"""Places for plain handlers: what a thread that hangs takes from the others."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pipeline_engine.steps.handler_threads import HandlerThreads


class Hanging:
    """A function that returns when it is let go."""

    def __init__(self) -> None:
        self.started = 0
        self._go = threading.Event()

    def __call__(self, argument: object) -> object:
        self.started += 1
        self._go.wait()
        return argument

    @contextmanager
    def until_the_end(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._go.set()


async def run(threads: HandlerThreads, function: object, argument: str = "done") -> object:
    async with threads.place() as call:
        return await call(function, argument)  # type: ignore[arg-type]


async def abandon(threads: HandlerThreads, function: Hanging, count: int) -> None:
    before = function.started
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(run, threads, function)
        with trio.fail_after(5):
            while function.started < before + count:  # noqa: ASYNC110 - threads start when they like
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()


async def all_ended(threads: HandlerThreads) -> None:
    with trio.fail_after(5):
        while threads.abandoned:  # noqa: ASYNC110 - threads end when they like
            await trio.sleep(0.001)


async def test_no_more_run_at_the_same_time_than_there_are_places() -> None:
    threads = HandlerThreads(threads=2)
    hanging = Hanging()
    with hanging.until_the_end():
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(run, threads, hanging)
            await wait_all_tasks_blocked(0.01)
            assert (threads.running, threads.abandoned) == (2, 0)
            hanging._go.set()
    assert (threads.running, threads.abandoned, hanging.started) == (0, 0, 3)


async def test_threads_that_hang_after_a_cancellation_leave_their_places_to_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    threads = HandlerThreads(threads=2, max_abandoned=4)
    hanging = Hanging()
    with hanging.until_the_end(), caplog.at_level(logging.WARNING):
        for _ in range(2):
            await abandon(threads, hanging, 2)
            assert await run(threads, str, "x") == "x"
        assert (threads.running, threads.abandoned) == (0, 4)
        await abandon(threads, hanging, 2)
        with trio.move_on_after(0.01) as scope:
            await run(threads, str)
        assert scope.cancelled_caught
        assert (threads.running, threads.abandoned) == (0, 6)
    await all_ended(threads)
    assert await run(threads, str, "x") == "x"
    assert threads.running == 0
    assert [record.getMessage() for record in caplog.records] == [
        "2 threads still run handlers of jobs that are over: do their handlers hang?",
        "6 threads still run handlers of jobs that are over: no other plain handler can run until one of them returns",
    ]


async def test_a_place_in_which_nothing_was_run_is_free_again() -> None:
    threads = HandlerThreads(threads=1)
    for _ in range(3):
        with trio.CancelScope() as scope:
            async with threads.place() as call:
                scope.cancel()
                await call(str, "never")
        with pytest.raises(ZeroDivisionError):
            await run(threads, lambda _: 1 // 0)
    assert (threads.running, threads.abandoned) == (0, 0)
