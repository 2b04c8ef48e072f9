"""What a provider call tells of itself in its span, in the names of OpenTelemetry's conventions for generative AI.

They are those of https://opentelemetry.io/docs/specs/semconv/gen-ai/ (`gen_ai_latest_experimental`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pipeline_engine.models import ProviderKind
from pipeline_engine.providers.addresses import origin_of
from pipeline_engine.providers.base import Chunk, Completion, Operation, ProviderCall, Target
from pipeline_engine.tracing import Attributes, Start

MAX_CONTENT = 16_384  # characters of each text: a collector refuses batches of many megabytes

_OPERATIONS = {
    Operation.CHAT: "chat",
    Operation.EMBED: "embeddings",
    Operation.IMAGE: "generate_content",
    Operation.TOOL: "execute_tool",
}
_NUMBERS = ("temperature", "top_p", "top_k", "seed", "frequency_penalty", "presence_penalty")


def describe_call(call: ProviderCall, *, with_content: bool) -> Start:
    """What is known of a call before it is made."""
    target, operation = call.target, _OPERATIONS[call.operation]
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "pipeline_engine.profile.id": target.profile_id,
    }
    if call.operation is Operation.TOOL:
        attributes["gen_ai.tool.name"] = target.profile_id
        if with_content:
            attributes["gen_ai.tool.call.arguments"] = _cut(call.stdin)
        return Start(f"{operation} {target.profile_id}", attributes)
    _, host, port = origin_of(target.base_uri)
    attributes |= {
        "gen_ai.provider.name": target.api if target.kind is ProviderKind.IMAGE else target.kind.value,
        "gen_ai.request.model": target.model,
        "server.address": host,
        "server.port": port,
        **_request_settings(call, target),
    }
    if with_content and call.messages:
        attributes |= _input(call)
    return Start(
        f"{operation} {target.model}".rstrip(), {k: v for k, v in attributes.items() if v != ""}, is_client=True
    )


def describe_completion(completion: Completion, chunks: Sequence[Chunk] | None, *, is_tool: bool) -> Attributes:
    """How the call ended; `chunks` are the answer, if it is wanted."""
    attributes: dict[str, Any] = {}
    if is_tool:
        if chunks is not None:
            attributes["gen_ai.tool.call.result"] = _cut("".join(chunk.content for chunk in chunks))
        return attributes
    if completion.finish_reason is not None:
        attributes["gen_ai.response.finish_reasons"] = [completion.finish_reason]
    if completion.model:
        attributes["gen_ai.response.model"] = completion.model
    if completion.usage is not None:
        attributes["gen_ai.usage.input_tokens"] = completion.usage.prompt_tokens
        attributes["gen_ai.usage.output_tokens"] = completion.usage.completion_tokens
    if chunks is not None and (chunks or completion.tool_calls):
        attributes["gen_ai.output.messages"] = _output(completion, chunks)
    return attributes


def _request_settings(call: ProviderCall, target: Target) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if call.operation is Operation.CHAT:
        settings["gen_ai.request.stream"] = target.stream
        is_json = call.json_mode or call.json_schema is not None
        settings["gen_ai.output.type"] = "json" if is_json else "text"
    if call.operation is Operation.IMAGE:
        settings["gen_ai.output.type"] = "image"
    if call.max_tokens is not None:
        settings["gen_ai.request.max_tokens"] = call.max_tokens
    for name in _NUMBERS:
        if type(value := target.options.get(name)) in (int, float):
            settings[f"gen_ai.request.{name}"] = value
    return settings


def _input(call: ProviderCall) -> dict[str, str]:
    system = [_text(message.content) for message in call.messages if message.role == "system"]
    others = [
        {"role": message.role, "parts": [_text(message.content)]}
        for message in call.messages
        if message.role != "system"
    ]
    return {
        **({"gen_ai.system_instructions": _json(system)} if system else {}),
        "gen_ai.input.messages": _json(others),
    }


def _output(completion: Completion, chunks: Sequence[Chunk]) -> str:
    parts: list[dict[str, Any]] = []
    for kind, part_type in (("reasoning", "reasoning"), ("text", "text")):
        if content := "".join(chunk.content for chunk in chunks if chunk.kind == kind):
            parts.append(_text(content) | {"type": part_type})
    parts += [{"type": "tool_call", **call} for call in completion.tool_calls]
    return _json([{"role": "assistant", "parts": parts, "finish_reason": completion.finish_reason or ""}])


def _text(content: str) -> dict[str, str]:
    return {"type": "text", "content": _cut(content)}


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CONTENT else text[:MAX_CONTENT] + "…"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
