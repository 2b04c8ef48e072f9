"""The OpenAI provider: chat and embeddings of every server that speaks OpenAI's API."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from typing import Any

import trio

from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.providers.adaptations import Adaptations
from pipeline_engine.providers.addresses import without_query
from pipeline_engine.providers.base import BEGUN, Chunk, Completion, Operation, ProviderCall, Target
from pipeline_engine.providers.embeddings import ordered_vectors
from pipeline_engine.providers.failures import AnsweredError
from pipeline_engine.providers.framing import SseDecoder, SseEvent
from pipeline_engine.providers.http import Answer, post_json, within_time_left
from pipeline_engine.providers.openai_chat import ChatAnswer, chat_body
from pipeline_engine.providers.transport import HttpClient
from pipeline_engine.providers.usage import usage_of

#: Seconds to wait at most for the usage and the end mark behind the finish reason; the answer is whole without them.
TAIL_TIMEOUT = 5.0

Batches = AsyncGenerator[list[Chunk | Completion]]


class OpenAiProvider:
    """Runs CHAT and EMBED calls. It remembers which parameters a server refuses for a model."""

    def __init__(self, *, client: HttpClient) -> None:
        self._client = client
        self._adaptations = Adaptations()

    def stream(self, call: ProviderCall) -> AbstractAsyncContextManager[Batches]:
        return aclosing(self._embed(call) if call.operation is Operation.EMBED else self._chat(call))

    async def _chat(self, call: ProviderCall) -> Batches:
        accept = "text/event-stream, application/json" if call.target.stream else "application/json"
        async with AsyncExitStack() as stack:
            answer, warnings = await self._post(stack, call.target, "/chat/completions", chat_body(call), accept)
            chat = ChatAnswer(answer, address=without_query(call.target.base_uri))
            if await answer.first_byte() in (b"{", b"[", b""):
                yield [*chat.feed_document(await answer.json())]
            else:
                async with aclosing(_events(answer, chat)) as batches:
                    async for batch in batches:
                        yield batch
            yield chat.finish(warnings)

    async def _embed(self, call: ProviderCall) -> Batches:
        target = call.target
        body = {**target.options, "model": target.model, "input": list(call.inputs)}
        async with AsyncExitStack() as stack:
            answer, warnings = await self._post(stack, target, "/embeddings", body, "application/json")
            value = await answer.json()
            try:
                vectors = ordered_vectors(value.get("data"), len(call.inputs))
            except ValueError as exc:
                raise answer.protocol_error(str(exc)) from exc
        model = value.get("model")
        yield [
            Completion(
                embeddings=vectors,
                usage=usage_of(value.get("usage")),
                model=model if isinstance(model, str) and model else None,
                warnings=warnings,
            )
        ]

    async def _post(
        self, stack: AsyncExitStack, target: Target, path: str, body: dict[str, Any], accept: str
    ) -> tuple[Answer, list[dict[str, Any]]]:
        """The answer to `body`, or to what the server takes of it, and the warnings about what it did not take.

        The answer is open as long as the stack.
        """
        adaptation = self._adaptations.recall(target)
        while True:
            adapted, warnings = adaptation.apply(body)
            try:
                posting = post_json(self._client, target, path, adapted, accept=accept)
                return await stack.enter_async_context(posting), warnings
            except AnsweredError as exc:
                if not self._adaptations.learn(target, adaptation, adapted, exc):
                    raise


async def _events(answer: Answer, chat: ChatAnswer) -> Batches:
    """The chunks of a stream as they arrive; an empty batch is a sign of life."""
    decoder = SseDecoder()
    last_lines: list[bytes] = []
    while not chat.is_whole and (lines := await answer.receive_lines()) is not None:
        last_lines = lines or last_lines
        batch: list[Chunk | Completion] = []
        for event in decoder.feed(lines):
            batch += chat.feed_event(event)
        yield batch or ([BEGUN] if chat.has_hidden else [])
    if not chat.is_whole and (last := decoder.flush()):
        yield [*_feed_last(chat, last)]
    while not chat.ended and (chunks := await _tail(answer, chat, decoder)):
        yield [*chunks]
    if not chat.began:
        raise answer.protocol_error("is no stream of events", raw=b"\n".join(last_lines))
    if chat.ended:
        await answer.drain()


async def _tail(answer: Answer, chat: ChatAnswer, decoder: SseDecoder) -> list[Chunk]:
    """The next chunks behind the finish reason, which few servers send; none when the wait for more is over."""
    chunks: list[Chunk] = []
    with trio.move_on_after(within_time_left(TAIL_TIMEOUT)):
        while not chat.ended and not chunks:
            try:
                lines = await answer.receive_lines()
            except ProviderError:
                break
            if lines is None:
                break
            for event in decoder.feed(lines):
                chunks += chat.feed_event(event)
    return chunks


def _feed_last(chat: ChatAnswer, event: SseEvent) -> list[Chunk]:
    """An event without the blank line behind it: perhaps the last one, perhaps cut in the middle."""
    try:
        return chat.feed_event(event)
    except ProviderError as exc:
        if exc.code is ErrorCode.PROVIDER_PROTOCOL:
            return []
        raise
