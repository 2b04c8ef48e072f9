"""One item, from its shard to its result: by a provider, a handler, or a transform of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from pipeline_engine.errors import ErrorCode, StepError
from pipeline_engine.jsontext import dumps_compact, loads_strict
from pipeline_engine.models import (
    OutputFormat,
    OutputType,
    ProviderKind,
    ResultItem,
    StepDef,
    StepKind,
    StepMode,
)
from pipeline_engine.providers.base import Message, Operation, ProviderCall, Target
from pipeline_engine.providers.mime import sniff_mime
from pipeline_engine.steps.artifacts import keep_artifact
from pipeline_engine.steps.calls import Answer, ItemCalls
from pipeline_engine.steps.context import JobContext
from pipeline_engine.steps.handlers import HandlerItem, call_handler, own_copy
from pipeline_engine.steps.images import images_of
from pipeline_engine.steps.prompts import Rendered, chat_call, item_scope, render_prompts, render_tool, with_turns
from pipeline_engine.steps.schema_checks import find_faults
from pipeline_engine.steps.schemas import MAX_MESSAGES, validate
from pipeline_engine.steps.shards import Shard, reduce_views, takes_images
from pipeline_engine.steps.structured import parse_loose, parse_strict
from pipeline_engine.steps.targets import StepTarget
from pipeline_engine.steps.transforms import MapOutput, apply_map, apply_reduce
from pipeline_engine.worker_processes import WorkerStartError

MAX_RAW_CHARS = 2_000
#: What a tool answers in a step with one of these output types is bytes and no text.
BYTES_OF_TOOLS = frozenset({OutputType.BINARY, OutputType.IMAGE})


class ItemMaker:
    """Makes the items of one step; what all of its items share is worked out once."""

    def __init__(self, context: JobContext, step: StepDef, *, dry_run: bool) -> None:
        self._context = context
        self._step = step
        self._dry_run = dry_run
        self._scope = context.scope(step)
        self._target: StepTarget | None = None
        if step.provider_profile_id is not None and not dry_run:
            self._target = StepTarget(context.services.registry, step, step.provider_profile_id)
        #: The step's own. Thousands of items, each with a copy of thousands of sources, would take for ever.
        self._handler_sources = own_copy(context.source_views) if step.config.handler is not None else []
        self._primary = context.graph.last_exported == step.id

    async def make(self, shards: Sequence[Shard]) -> list[ResultItem | None]:
        """The items of these shards, None for one that was left out. More than one shard is an embedding batch."""
        step, target = self._step, self._target
        if self._dry_run:
            return [await self._rehearse(shard) for shard in shards]
        if target is not None and step.output_type is OutputType.EMBEDDING:
            return await self._embed(target, shards)
        [shard] = shards
        if target is not None:
            return [await self._ask(target, shard)]
        if step.kind is StepKind.CUSTOM:
            return [await self._handle(shard)]
        output = await self._transform(shard)
        if output is None:
            return [None]
        return [await self._text_item(shard, await self._formatted(_output_data(output)))]

    # each way to make an item

    async def _rehearse(self, shard: Shard) -> ResultItem:
        """A dry run: the prompt stands for the answer."""
        rendered = await self._render(shard)
        return self._item(shard, {"text": rendered.user, "json": None, "prompt": rendered.user})

    async def _ask(self, step_target: StepTarget, shard: Shard) -> ResultItem:
        target = step_target.current()
        rendered = await self._render(shard, target)
        if target.kind is ProviderKind.LOCAL_TOOL:
            binary = self._step.output_type in BYTES_OF_TOOLS
            call = await render_tool(self._context, target, rendered, self._scope_of(shard), binary=binary)
        else:
            images = await images_of(self._context, shard) if takes_images(self._step) else ()
            call = chat_call(self._context, self._step, target, rendered, images=images)
        calls = ItemCalls(self._context, self._step, [shard.key], step_target)
        answer = await calls.call(call)
        if call.operation is Operation.IMAGE:
            return await self._image_item(shard, rendered, answer)
        data = self._answer_data(rendered, answer)
        if call.binary:
            return self._item(shard, data | {"artifact": await self._keep(answer.completion.output)})
        if self._step.output_format is OutputFormat.JSON_LOOSE:
            found, data["json"] = parse_loose(answer.text, is_cut=_is_cut(answer))
            if _is_cut(answer) and not found:
                raise _cut_off(answer)
        elif self._step.output_format is OutputFormat.JSON_STRICT:
            answer, value = await self._insist_on_json(calls, call, answer)
            data = self._answer_data(rendered, answer) | {"json": value}
        return await self._text_item(shard, data)

    async def _insist_on_json(self, calls: ItemCalls, call: ProviderCall, answer: Answer) -> tuple[Answer, Any]:
        """The answer that parses and fits the schema; the model is asked again as often as the step allows."""
        config = self._step.config
        repairs = 0 if call.operation is Operation.TOOL else config.repair_attempts
        conversation = call
        while True:
            if _is_cut(answer):
                raise _cut_off(answer)
            faults, value = await self._check_json(answer.text)
            if not faults:
                return answer, value
            if repairs == 0:
                words = f"the answer is not the JSON that was asked for: {'; '.join(faults)}"
                raise StepError(ErrorCode.OUTPUT_INVALID, words, details=_raw(answer))
            repairs -= 1
            conversation = with_turns(
                conversation,
                Message("assistant", answer.text),
                Message("user", f"That answer cannot be used: {'; '.join(faults)}. Answer again with the JSON alone."),
            )
            calls.begin_repair()
            answer = await calls.call(conversation)

    async def _formatted(self, data: dict[str, Any]) -> dict[str, Any]:
        """The data with the text parsed as output_format asks, where a handler or transform gave no JSON value."""
        if "json" in data or self._step.output_format is OutputFormat.TEXT:
            return data
        if self._step.output_format is OutputFormat.JSON_LOOSE:
            _, value = parse_loose(data["text"])
            return data | {"json": value}
        faults, value = await self._check_json(data["text"])
        if faults:
            words = f"the text is not the JSON that was asked for: {'; '.join(faults)}"
            raise StepError(ErrorCode.OUTPUT_INVALID, words, details={"raw": data["text"][:MAX_RAW_CHARS]})
        return data | {"json": value}

    async def _check_json(self, text: str) -> tuple[list[str], Any]:
        try:
            value = parse_strict(text)
        except ValueError as exc:
            return [str(exc)], None
        faults: list[str] = []
        if self._step.config.json_schema is not None:
            try:
                faults += await find_faults(
                    value, self._step.config.json_schema, processes=self._context.services.processes
                )
            except WorkerStartError as exc:
                raise StepError(ErrorCode.INTERNAL, exc.message) from exc
        if self._step.output_type is OutputType.TABLE:
            faults += _table_faults(value)
        return faults, value

    async def _embed(self, step_target: StepTarget, shards: Sequence[Shard]) -> list[ResultItem | None]:
        target = step_target.current()
        rendered = [await self._render(shard, target) for shard in shards]
        call = ProviderCall(target=target, operation=Operation.EMBED, inputs=[prompt.user for prompt in rendered])
        keys = [shard.key for shard in shards]
        answer = await ItemCalls(self._context, self._step, keys, step_target).call(call)
        vectors = answer.completion.embeddings
        items: list[ResultItem | None] = []
        for shard, prompt, vector in zip(shards, rendered, vectors, strict=True):
            data = self._answer_data(prompt, answer)
            data |= {"text": prompt.user, **_vector_data(vector)}
            data.pop("usage", None)  # of the whole batch; the step execution has it
            items.append(self._item(shard, data))
        return items

    async def _image_item(self, shard: Shard, rendered: Rendered, answer: Answer) -> ResultItem:
        data = self._answer_data(rendered, answer)
        images = answer.completion.images
        if not images:
            raise StepError(ErrorCode.PROVIDER_EMPTY, "the answer holds no image")
        artifacts = [await self._keep(image) for image in images]
        data["artifact"] = artifacts[0]
        if len(artifacts) > 1:
            data["artifacts"] = artifacts
        return self._item(shard, data)

    async def _text_item(self, shard: Shard, data: dict[str, Any]) -> ResultItem:
        """The item of what answers with a text; in a binary step the bytes of that text are its artifact."""
        if self._step.output_type is OutputType.TABLE and (faults := _table_faults(data.get("json"))):
            words = f"the output is not a table, a list of objects: {'; '.join(faults)}"
            raise StepError(ErrorCode.OUTPUT_INVALID, words, details={"raw": data["text"][:MAX_RAW_CHARS]})
        if self._step.output_type is OutputType.BINARY:
            data = data | {"artifact": await self._keep(data["text"].encode("utf-8", "replace"))}
        return self._item(shard, data)

    async def _keep(self, data: bytes) -> dict[str, Any]:
        job_id = self._context.job.id
        sha256 = await keep_artifact(self._context.services, data, job_id=job_id)
        mime_type = sniff_mime(data) or "application/octet-stream"
        url = f"/v1/jobs/{job_id}/artifacts/{sha256}"
        return {"id": sha256, "url": url, "mime_type": mime_type, "bytes": len(data), "sha256": sha256}

    async def _handle(self, shard: Shard) -> ResultItem | None:
        step, context = self._step, self._context
        rendered = await self._render(shard)
        item = HandlerItem(
            job_id=context.job.id,
            step_id=step.id,
            shard_key=shard.key,
            index=shard.index,
            text=shard.text,
            json=own_copy(shard.json),
            embedding=None if shard.embedding is None else [*shard.embedding],
            prompt=rendered.user,
            label=shard.label,
            sources=[*self._handler_sources],
            options=own_copy(context.input.options),
        )
        assert step.config.handler is not None  # pipeline.check
        handler = context.services.handlers.get(step.config.handler)
        begin = ItemCalls(context, step, [shard.key]).begin_attempt
        result = await call_handler(handler, item, threads=context.services.handler_threads, begin=begin)
        if result is None:
            return None
        data = _data_of_handler(result, step.config.handler)
        return await self._text_item(shard, await self._formatted(data))

    async def _transform(self, shard: Shard) -> MapOutput | None:
        step, renderer, workers = self._step, self._context.services.renderer, self._context.services.workers
        scope = self._scope_of(shard)
        if step.kind is StepKind.REDUCE:
            # The mode tells, and no key: in per_item the item of a single step has none.
            views = reduce_views(self._context, step) if step.mode is StepMode.SINGLE else [shard.view]
            return await apply_reduce(step.config, views, renderer=renderer, context=scope, workers=workers)
        return await apply_map(step.config, shard.view, renderer=renderer, context=scope, workers=workers)

    # what items consist of

    def _scope_of(self, shard: Shard) -> dict[str, Any]:
        return item_scope(self._scope, shard, sharded=self._step.mode is not StepMode.SINGLE)

    async def _render(self, shard: Shard, target: Target | None = None) -> Rendered:
        scope: Mapping[str, Any] = self._scope_of(shard)
        system_prompt = None if target is None else target.system_prompt
        return await render_prompts(self._context, self._step, shard, scope, system_prompt=system_prompt)

    def _answer_data(self, rendered: Rendered, answer: Answer) -> dict[str, Any]:
        completion, target = answer.completion, answer.target
        data: dict[str, Any] = {"text": answer.text, "prompt": rendered.user, "provider": target.profile_id}
        optional = {
            "model": target.model or completion.model,
            "usage": completion.usage,
            "finish_reason": completion.finish_reason,
            "reasoning": answer.reasoning,
            "tool_calls": list(completion.tool_calls),
            "warnings": answer.warnings,
        }
        data |= {name: value for name, value in optional.items() if value}
        data["latency_ms"] = round(answer.latency_s * 1000)
        return data

    def _item(self, shard: Shard, data: dict[str, Any]) -> ResultItem:
        step = self._step
        label = step.title if step.mode is StepMode.SINGLE else f"{step.title}#{shard.index + 1}"
        return ResultItem(
            id=step.id if shard.key is None else f"{step.id}/{shard.key}",
            label=label,
            step_id=step.id,
            shard_key=shard.key,
            is_primary=self._primary,
            kind=step.kind,
            tag=step.export_tag,
            content_type=step.output_type,
            data=data,
        )


def _output_data(output: MapOutput) -> dict[str, Any]:
    data = {"text": output.text, "json": output.json} if output.has_json else {"text": output.text}
    return data if output.embedding is None else data | _vector_data(output.embedding)


def _vector_data(vector: list[float]) -> dict[str, Any]:
    return {"embedding": vector, "dimensions": len(vector)}


def _table_faults(value: Any) -> list[str]:
    """What keeps the value from being a table, in the words of the schema checks."""
    if not isinstance(value, list):
        return validate(value, {"type": "array"})
    # Row by row by a schema, a hundred thousand rows would take seconds.
    bad = islice((index for index, row in enumerate(value) if not isinstance(row, dict)), MAX_MESSAGES)
    return [f"$[{index}]{fault[1:]}" for index in bad for fault in validate(value[index], {"type": "object"})]


def _is_cut(answer: Answer) -> bool:
    """Whether the token limit ended the answer."""
    return answer.completion.finish_reason == "length"


def _cut_off(answer: Answer) -> StepError:
    words = "the answer was cut by the token limit before its JSON was complete"
    return StepError(ErrorCode.OUTPUT_TRUNCATED, words, details=_raw(answer))


def _raw(answer: Answer) -> dict[str, Any]:
    return {"raw": answer.text[:MAX_RAW_CHARS], "attempt": answer.attempt}


def _data_of_handler(result: object, name: str) -> dict[str, Any]:
    """The text that the handler returned, or its value and that as JSON. Raises StepError(tool_failed)."""
    try:
        text = result if isinstance(result, str) else dumps_compact(result)
        # A lone surrogate can neither be stored nor sent.
        text = text.encode("utf-8", "replace").decode()
        return {"text": text} if isinstance(result, str) else {"text": text, "json": loads_strict(text)}
    except (TypeError, ValueError) as exc:
        what = f"a {type(result).__name__}, which is neither a text nor a JSON value"
        raise StepError(ErrorCode.TOOL_FAILED, f"the handler {name!r} returned {what}: {exc}") from exc
