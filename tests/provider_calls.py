"""Short ways to call a provider in a test and to see all of its answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline_engine.models import ProviderKind
from pipeline_engine.providers.base import BEGUN, Chunk, Completion, Message, Operation, ProviderCall, Target
from pipeline_engine.providers.transport import HttpClient, Network


@dataclass
class Collected:
    """A whole answer; `batches` holds what was yielded, without the Completion and what was empty."""

    batches: list[list[str]] = field(default_factory=list)
    text: str = ""
    reasoning: str = ""
    completion: Completion = field(default_factory=Completion)


async def collect(stream: AbstractAsyncContextManager[AsyncIterator[list[Chunk | Completion]]]) -> Collected:
    answer = Collected()
    async with stream as batches:
        async for batch in batches:
            chunks = [part for part in batch if isinstance(part, Chunk) and part is not BEGUN]
            if chunks:
                answer.batches.append([chunk.content for chunk in chunks])
            answer.text += "".join(chunk.content for chunk in chunks if chunk.kind == "text")
            answer.reasoning += "".join(chunk.content for chunk in chunks if chunk.kind == "reasoning")
            for part in batch:
                if isinstance(part, Completion):
                    answer.completion = part
    return answer


def target_of(base_uri: str, kind: ProviderKind = ProviderKind.OPENAI, **settings: Any) -> Target:
    return Target(**{"profile_id": "p", "kind": kind, "base_uri": base_uri, "model": "m", **settings})


def chat_call(target: Target, user: str = "hello", **fields: Any) -> ProviderCall:
    return ProviderCall(**{"target": target, "messages": [Message("user", user)], **fields})


def embed_call(target: Target, *inputs: str) -> ProviderCall:
    return ProviderCall(target=target, operation=Operation.EMBED, inputs=inputs)


def image_call(target: Target, prompt: str = "a cat") -> ProviderCall:
    return ProviderCall(target=target, operation=Operation.IMAGE, messages=[Message("user", prompt)])


@asynccontextmanager
async def open_client(network: Network | None = None) -> AsyncIterator[HttpClient]:
    client = HttpClient(network=network or Network(proxies={}))
    try:
        yield client
    finally:
        client.close()
