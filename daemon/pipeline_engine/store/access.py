"""How the event loop calls a store: in worker threads if it blocks, at once if it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import trio

from pipeline_engine.store.base import Store

T = TypeVar("T")


class StoreAccess:
    """Calls methods of a store, at most `threads` of them at the same time."""

    def __init__(self, store: Store, *, threads: int) -> None:
        self.store = store
        self._limiter = trio.CapacityLimiter(threads) if store.blocks else None

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """The function's result. It is never abandoned: a cancellation waits until it has returned."""
        if self._limiter is not None:
            return await trio.to_thread.run_sync(function, *arguments, limiter=self._limiter)
        await trio.lowlevel.checkpoint()
        return function(*arguments)
