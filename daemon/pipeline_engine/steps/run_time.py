"""Notes in the store for how long a job has been running, so that its deadlines outlive a crash."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from pipeline_engine.steps.context import JobContext

PARTS = 10  # of a time limit; a crash gives back one of them at most
MIN_INTERVAL = 1.0  # seconds


@asynccontextmanager
async def run_time_noted(context: JobContext, timeout_s: float) -> AsyncGenerator[None]:
    """While in the block, which has this time limit, the store is told often enough for how long the job has run."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_note, context, max(MIN_INTERVAL, timeout_s / PARTS))
        try:
            yield
        except Exception as exc:  # noqa: BLE001 - raised again below; the nursery would make a group of it
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _note(context: JobContext, interval: float) -> None:
    while True:
        pause = context.noted_s + interval - context.ran_s  # what begins with a step is noted too
        if pause > 0:
            await trio.sleep(pause)
        elif context.log.has_room:
            context.log.post(state=context.state())
        else:
            await context.log.wait_for_room()
