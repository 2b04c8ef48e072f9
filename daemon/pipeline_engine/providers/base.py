"""What steps and providers say to each other: the call, the chunks of its answer, and how the answer ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import Any, Literal, Protocol

import msgspec

from pipeline_engine.decoding import Secret
from pipeline_engine.models import ProviderKind, Sandbox, Usage
from pipeline_engine.providers.limits import NO_LIMITS, LimitSettings


class Operation(StrEnum):
    """What is asked of a provider."""

    CHAT = "chat"
    EMBED = "embed"
    IMAGE = "image"
    TOOL = "tool"


class Message(msgspec.Struct, frozen=True):
    """One turn of a chat; `images` are bytes that go along with the content."""

    role: Literal["system", "user", "assistant"]
    content: str
    images: tuple[bytes, ...] = ()


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a call goes: a profile with the step's override and the defaults applied. Durations are seconds."""

    profile_id: str
    kind: ProviderKind
    base_uri: str
    model: str
    api_key: Secret | None = None
    headers: Mapping[str, Secret] = msgspec.field(default_factory=dict)
    system_prompt: str | None = None
    options: Mapping[str, Any] = msgspec.field(default_factory=dict)
    stream: bool = True
    keep_alive: str | int | float | None = None
    api: Literal["openai", "a1111"] = "openai"
    timeout_s: float | None = None
    connect_timeout_s: float = 10.0
    first_token_timeout_s: float = 300.0
    idle_timeout_s: float = 60.0
    loading_timeout_s: float = 300.0
    limits: LimitSettings = NO_LIMITS  # those of the step; where they say nothing, the profile's hold
    # local_tool only
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    cwd: str | None = None
    grace_s: float = 2.0
    max_output_bytes: int = 16 * 1024 * 1024
    sandbox: Sandbox | bool = True
    max_memory_bytes: int | None = None  # 0 is no limit, None the default
    idempotent: bool = True


class ProviderCall(msgspec.Struct, frozen=True, kw_only=True):
    """One request to a provider. Which fields matter depends on the operation:

    CHAT: messages, max_tokens, json_schema; EMBED: inputs; IMAGE: messages (the last one's content is the prompt);
    TOOL: stdin, command and env, rendered; `binary`: the output is wanted as bytes, and no chunks of text.
    """

    target: Target
    operation: Operation = Operation.CHAT
    messages: Sequence[Message] = ()
    max_tokens: int | None = None
    json_mode: bool = False
    json_schema: dict[str, Any] | bool | None = None
    inputs: Sequence[str] = ()
    stdin: str = ""
    command: Sequence[str] = ()
    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    binary: bool = False


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """A piece of an answer, as the provider sent it."""

    content: str
    kind: Literal["text", "reasoning"] = "text"


#: A batch of this one alone says that the answer has begun with what is not shown, such as a piece of a tool call.
BEGUN = Chunk("")


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer ended; always the last thing that a stream yields.

    `tool_calls` are `{id, name, arguments}`; `warnings` `{code, message, …}`; `embeddings` one vector for each input,
    in their order; `images` the bytes of each image; `output` those of a tool that was asked for bytes.
    """

    finish_reason: str | None = None
    usage: Usage | None = None
    model: str | None = None
    tool_calls: Sequence[dict[str, Any]] = ()
    warnings: Sequence[dict[str, Any]] = ()
    embeddings: Sequence[list[float]] = ()
    images: Sequence[bytes] = ()
    output: bytes = b""


class Provider(Protocol):
    """Runs calls of one kind. A cancelled call closes its connection, or kills its process, at once."""

    def stream(self, call: ProviderCall) -> AbstractAsyncContextManager[AsyncIterator[list[Chunk | Completion]]]:
        """Start the call; the iterator yields what arrived together, as one list, the Completion last. An empty list is
        a sign of life.

        Raises ProviderError (StepError for tools) on entering and while iterating.
        """
        ...
