"""The rendered prompts of an item: what goes to a model, or to a tool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from pipeline_engine.errors import TemplateError
from pipeline_engine.models import ProviderKind, StepDef
from pipeline_engine.providers.base import Message, Operation, ProviderCall, Target
from pipeline_engine.renderer import Renderer
from pipeline_engine.steps.context import JobContext
from pipeline_engine.steps.shards import Shard


@dataclass(frozen=True, slots=True)
class Rendered:
    """The prompts of one item: `messages` ends with the user's turn, whose content is `user`."""

    user: str
    messages: tuple[Message, ...]


def item_scope(base: Mapping[str, Any], shard: Shard, *, sharded: bool) -> dict[str, Any]:
    """The names in scope for one item: those of the step, and the item itself; `sharded`: in fanout and per_item."""
    scope = {**base, "item": shard.view}
    if shard.source is not None:
        scope["source"] = shard.source
    if sharded:
        scope["index"] = shard.index
    return scope


async def render_prompts(
    context: JobContext, step: StepDef, shard: Shard, scope: Mapping[str, Any], *, system_prompt: str | None
) -> Rendered:
    """Render the prompts; without `prompt.user` the user's turn is the shard's text. Raises TemplateError."""
    renderer = context.services.renderer
    prompt = step.prompt
    user = shard.text if prompt.user is None else await _render(renderer, "prompt.user", prompt.user, scope)
    messages = []
    system_parts = [system_prompt] if system_prompt else []
    if prompt.system is not None:
        system_parts.append(await _render(renderer, "prompt.system", prompt.system, scope))
    if system_parts:
        messages.append(Message("system", "\n\n".join(system_parts)))
    for index, turn in enumerate(prompt.meta.get("messages", ())):
        content = await _render(renderer, f"prompt.meta.messages[{index}]", turn["content"], scope)
        messages.append(Message(turn["role"], content))
    messages.append(Message("user", user))
    return Rendered(user, tuple(messages))


async def render_tool(
    context: JobContext, target: Target, rendered: Rendered, scope: Mapping[str, Any], *, binary: bool
) -> ProviderCall:
    """The call of a local tool: each argument and each value of its environment is a template."""
    renderer = context.services.renderer
    command = [
        await _render(renderer, f"command[{index}]", argument, scope) for index, argument in enumerate(target.command)
    ]
    env = {name: await _render(renderer, f"env.{name}", value, scope) for name, value in target.env.items()}
    return ProviderCall(
        target=target, operation=Operation.TOOL, stdin=rendered.user, command=command, env=env, binary=binary
    )


def chat_call(
    context: JobContext, step: StepDef, target: Target, rendered: Rendered, *, images: tuple[bytes, ...] = ()
) -> ProviderCall:
    """The call of a model, or of an image server; `images` go along with the user's turn."""
    *before, last = rendered.messages
    wants_json = step.output_format.startswith("json")
    return ProviderCall(
        target=target,
        operation=Operation.IMAGE if target.kind is ProviderKind.IMAGE else Operation.CHAT,
        messages=(*before, msgspec.structs.replace(last, images=images) if images else last),
        max_tokens=max_tokens_of(context.input.options),
        json_mode=wants_json and step.output_format == "json_strict",
        json_schema=step.config.json_schema if wants_json else None,
    )


def max_tokens_of(options: Mapping[str, Any]) -> int | None:
    """`options.max_tokens`, where 12.0 is 12; None if there is none, or no whole number (see admission.py)."""
    value = options.get("max_tokens")
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def with_turns(call: ProviderCall, *turns: Message) -> ProviderCall:
    """The same call with further turns of the conversation."""
    return msgspec.structs.replace(call, messages=(*call.messages, *turns))


async def _render(renderer: Renderer, place: str, source: str, scope: Mapping[str, Any]) -> str:
    try:
        return await renderer.render(source, scope)
    except TemplateError as exc:
        raise TemplateError(f"{place}: {exc.message}", details=exc.details) from exc
