"""ASGI's lifespan: tells the app that serving begins and ends."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from pipeline_engine.api.serving.asgi import AsgiApp

SHUTDOWN_TIMEOUT_S = 1.0  # how long the app may take for its own end

logger = logging.getLogger(__name__)


@asynccontextmanager
async def run_lifespan(app: AsgiApp) -> AsyncGenerator[None, None]:
    """The app is started before the body runs and shut down after it; RuntimeError if it fails to start.

    An app that knows no lifespan (it raises, or just returns) is served all the same.
    """
    to_app, from_server = trio.open_memory_channel[dict[str, Any]](1)
    started, stopped = trio.Event(), trio.Event()
    failures: list[str] = []

    async def send(message: Mapping[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        if message["type"].endswith(".failed"):
            failures.append(message.get("message", ""))
        (started if message["type"].startswith("lifespan.startup.") else stopped).set()

    async def run() -> None:
        try:
            await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, from_server.receive, send)
        except* Exception as group:
            if started.is_set():
                logger.exception("the app's lifespan failed", exc_info=group)
        finally:
            started.set()
            stopped.set()

    with to_app, from_server:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            to_app.send_nowait({"type": "lifespan.startup"})
            await started.wait()
            if failures:
                nursery.cancel_scope.cancel()
            else:
                yield
                with trio.move_on_after(SHUTDOWN_TIMEOUT_S):
                    if not stopped.is_set():
                        await to_app.send({"type": "lifespan.shutdown"})
                        await stopped.wait()
                nursery.cancel_scope.cancel()
    if failures:
        raise RuntimeError(f"the app did not start: {failures[0]}")
