"""The timeouts of one provider call: to the first token, between tokens, and for all of it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.providers.addresses import without_query
from pipeline_engine.providers.base import BEGUN, Chunk, Completion, Operation, Provider, ProviderCall

Batch = list[Chunk | Completion]


@asynccontextmanager
async def open_watched(
    provider: Provider, call: ProviderCall, *, note: Callable[[Batch], None]
) -> AsyncIterator[AsyncIterator[Batch]]:
    """The call's stream under its target's timeouts; `note` is told each batch. A timeout is a ProviderError.

    Tools watch their own time, since their processes want a grace before they are killed.
    """
    watched = _Watched(call, note)
    with watched.scope as scope:
        async with provider.stream(call) as batches:
            watched.batches = batches
            yield watched
    if scope.cancelled_caught:
        raise watched.timeout_error()


class _Watched:
    """Passes the batches on. Only while it waits for the provider does the deadline of first or next token run, so
    that a slow consumer is not the provider's fault.
    """

    batches: AsyncIterator[Batch]

    def __init__(self, call: ProviderCall, note: Callable[[Batch], None]) -> None:
        now = trio.current_time()
        target = call.target
        self._target = target
        self._note = note
        self._watching = call.operation is not Operation.TOOL
        self._end = now + (target.timeout_s or math.inf)
        self._first = now + target.first_token_timeout_s
        self._began = False
        self._ended = False
        self.scope = trio.CancelScope(deadline=min(self._end, self._first) if self._watching else math.inf)

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        if self._ended:  # there is nothing to wait for behind the completion
            return await anext(self.batches)
        while True:
            if self._began:
                self._set_deadline(trio.current_time() + self._target.idle_timeout_s)
            else:
                self._set_deadline(self._first)
            try:
                batch = await anext(self.batches)
            finally:
                self._set_deadline(math.inf)
            # An empty batch is a sign of life: something arrived, but no content. It keeps a stream that has begun
            # alive, but is no first token.
            if batch:
                self._began = True
                if batch[0] is BEGUN:
                    continue
                self._ended = isinstance(batch[-1], Completion)
                self._note(batch)
                return batch

    def timeout_error(self) -> ProviderError:
        """The error for the deadline that has passed."""
        target, address = self._target, without_query(self._target.base_uri)
        if trio.current_time() >= self._end:
            message = f"{address} did not finish within {target.timeout_s:g} s (timeout_s)"
        elif self._began:
            message = (
                f"{address} fell silent in the middle of its answer for {target.idle_timeout_s:g} s (idle_timeout_s)"
            )
        else:
            message = f"{address} sent no token within {target.first_token_timeout_s:g} s (first_token_timeout_s)"
        return ProviderError(ErrorCode.TIMEOUT, message, retryable=True)

    def _set_deadline(self, deadline: float) -> None:
        deadline = min(self._end, deadline)
        if self._watching and deadline != self.scope.deadline:  # to set it costs as much as all else here
            self.scope.deadline = deadline
