"""One item's provider call: its attempts, what they show while they run, and the pauses between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio

from pipeline_engine.errors import ErrorCode, ProviderError, StepError
from pipeline_engine.events import EventName
from pipeline_engine.models import StepDef, StepExecution, StepId, Wire
from pipeline_engine.providers.base import Chunk, Completion, ProviderCall, Target
from pipeline_engine.steps.context import JobContext, job_error
from pipeline_engine.steps.retry import pause_before_retry, pause_while_loading
from pipeline_engine.steps.targets import StepTarget


class ItemStarted(Wire, kw_only=True):
    step_id: StepId
    shard_key: str | None = None
    attempt: int


class ProviderChunk(msgspec.Struct, kw_only=True):
    """The data of a provider_chunk; `kind` is text or reasoning."""

    step_id: StepId
    shard_key: str | msgspec.UnsetType | None = msgspec.UNSET
    attempt: int
    index: int
    content: str
    kind: str


@dataclass(slots=True, kw_only=True)
class Answer:
    """A whole answer of a provider; latency is in seconds."""

    target: Target
    text: str
    reasoning: str
    completion: Completion
    attempt: int
    latency_s: float
    warnings: list[dict[str, Any]] = field(default_factory=list)


class ItemCalls:
    """All calls that are made for one item (an embedding batch counts as its first).

    Attempts are numbered over restarts and repairs, since each voids what the one before has shown; only failures of
    this run count against `retry.max_attempts`.
    """

    def __init__(
        self, context: JobContext, step: StepDef, shard_keys: Sequence[str | None], target: StepTarget | None = None
    ) -> None:
        self._context = context
        self._step = step
        self._step_target = target
        self._execution: StepExecution = context.executions[step.id]
        self._keys = shard_keys
        self._key = shard_keys[0]
        self.attempt = max(context.attempts.get((step.id, key), 0) for key in shard_keys)
        self._begun = False
        self._made: ProviderCall | None = None
        self._failures = 0

    async def call(self, call: ProviderCall) -> Answer:
        """The answer to the call, after as many attempts as the step allows. Raises StepError."""
        loading_since: float | None = None
        polls = 0
        self._begun = False
        while True:
            try:
                call = self._renewed(call)
                return await self._attempt(call)
            except ProviderError as exc:
                if exc.loading and self._may_wait(call, loading_since, asked_s=exc.retry_after_s):
                    self._context.budget.return_call()
                    loading_since = trio.current_time() if loading_since is None else loading_since
                    self._show_loading()
                    await trio.sleep(pause_while_loading(polls, asked_s=exc.retry_after_s))
                    polls += 1
                    continue
                await self._pause_or_raise(exc)
                loading_since, polls = None, 0
                self._begun = False

    def begin_repair(self) -> None:
        """The next call asks again for an answer that was not what was wanted: that is no failure of the provider."""
        self._failures = 0

    async def _begin_call(self, call: ProviderCall) -> ProviderCall:
        """The provider's limits let the call go: until now it has cost nothing, and a restart may forget it."""
        call = self._renewed(call)
        self._context.budget.spend_call()
        if not self._begun:  # further looks at a server that loads its model belong to the same attempt
            await self.begin_attempt()
        self._made = call
        return call

    def _renewed(self, call: ProviderCall) -> ProviderCall:
        return call if self._step_target is None else self._step_target.renewed(call)

    async def begin_attempt(self) -> None:
        """A new attempt at the item begins; `call` does this by itself."""
        self._begun = True
        self.attempt += 1
        self._execution.attempts = max(self._execution.attempts, self.attempt)
        events = [
            (EventName.ITEM_STARTED, ItemStarted(step_id=self._step.id, shard_key=key, attempt=self.attempt))
            for key in self._keys
        ]
        # With it goes the step's execution, which tells of its attempts and of how many items there will be.
        write = self._context.log.post(events, executions=[self._context.progress_record(self._step.id)])
        if not self._context.may_repeat(self._step):
            # Stored before it starts: after a crash nobody could tell otherwise that it was started.
            await write.wait()

    async def _attempt(self, call: ProviderCall) -> Answer:
        context = self._context
        context.budget.check()  # there is no use in waiting for the limits of the provider
        began = trio.current_time()
        texts: list[str] = []
        reasoning: list[str] = []
        completion: Completion | None = None
        index = 0
        stream = context.services.registry.stream(call, job_id=context.job.id, begin=self._begin_call)
        async with stream as batches:
            async for batch in batches:
                events = []
                for part in batch:
                    if isinstance(part, Completion):
                        completion = part
                        continue
                    (texts if part.kind == "text" else reasoning).append(part.content)
                    events.append((EventName.PROVIDER_CHUNK, self._chunk(part, index)))
                    index += 1
                if events:
                    context.log.post(events)
                    if not context.log.has_room:
                        await context.log.wait_for_room()
        if completion is None or self._made is None:
            raise StepError(ErrorCode.INTERNAL, "the provider's stream ended without a completion")
        context.add_usage(completion.usage, self._execution)
        return Answer(
            target=self._made.target,
            text="".join(texts),
            reasoning="".join(reasoning),
            completion=completion,
            attempt=self.attempt,
            latency_s=trio.current_time() - began,
            warnings=[dict(warning) for warning in completion.warnings],
        )

    def _chunk(self, chunk: Chunk, index: int) -> ProviderChunk:
        return ProviderChunk(
            step_id=self._step.id,
            shard_key=msgspec.UNSET if self._key is None else self._key,
            attempt=self.attempt,
            index=index,
            content=chunk.content,
            kind=chunk.kind,
        )

    def _may_wait(self, call: ProviderCall, loading_since: float | None, *, asked_s: float | None) -> bool:
        """Whether the model still has time to load, also after the pause that the server asks for."""
        waited = 0.0 if loading_since is None else trio.current_time() - loading_since
        return waited + (asked_s or 0.0) < call.target.loading_timeout_s

    def _show_loading(self) -> None:
        execution = self._execution
        data = {
            "step_id": self._step.id,
            "done": execution.items_done,
            "total": execution.items_total,
            "note": "the server is loading the model",
        }
        self._context.log.post([(EventName.STEP_PROGRESS, data)])

    async def _pause_or_raise(self, exc: ProviderError) -> None:
        self._failures += 1
        pause = pause_before_retry(
            exc, failures=self._failures, retry=self._step.retry, jitter=self._context.services.jitter
        )
        if self._begun:
            exc.details = {**exc.details, "attempt": self.attempt}
        if pause is None:
            if exc.retryable and exc.retry_after_s is not None and self._failures < self._step.retry.max_attempts:
                asked, allowed = exc.retry_after_s, self._step.retry.max_backoff_s
                exc.message += f"; it asks to wait for {asked:g} s, longer than retry.max_backoff_s ({allowed:g} s)"
            raise exc
        data: dict[str, Any] = {"step_id": self._step.id}
        if self._key is not None:
            data["shard_key"] = self._key
        error = job_error(exc, step_id=self._step.id, shard_key=self._key)
        data |= {"attempt": self.attempt + 1, "delay_s": round(pause, 3), "error": error}
        self._context.services.registry.count_retry(self._step.provider_profile_id or "")
        self._context.log.post([(EventName.STEP_RETRYING, data)])
        await trio.sleep(pause)
