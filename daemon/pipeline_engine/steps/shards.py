"""What a step works on: one shard for each call it makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from pipeline_engine.errors import ErrorCode, StepError
from pipeline_engine.jsontext import dumps_compact
from pipeline_engine.models import OutputType, Split, SplitBy, StepDef, StepId, StepKind, StepMode
from pipeline_engine.pipeline import PROVIDER_KINDS, input_step
from pipeline_engine.steps.context import JobContext, artifact_ids
from pipeline_engine.steps.sharding import Piece, split_source


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """The input of one call. `key` is None in single mode; `source` is there when it is (a piece of) a source.

    `sources` are the places of the sources that it consists of, `artifacts` the SHA-256 of those of its items;
    `embedding` is the vector of the item that it is.
    """

    index: int
    key: str | None
    text: str
    json: Any = None
    has_json: bool = False
    label: str = ""
    source: dict[str, Any] | None = None
    sources: Sequence[int] = ()
    artifacts: Sequence[str] = ()
    embedding: list[float] | None = None

    @property
    def view(self) -> dict[str, Any]:
        """The shard as templates and transforms see it."""
        view = {"text": self.text, "json": self.json, "label": self.label, "shard_key": self.key}
        return view if self.embedding is None else {**view, "embedding": self.embedding}


def takes_images(step: StepDef) -> bool:
    """Whether images go along with the prompt of the step, instead of a note of their size in it."""
    return step.kind is StepKind.LLM and step.output_type is not OutputType.EMBEDDING


def make_shards(context: JobContext, step: StepDef, *, dry_run: bool) -> list[Shard]:
    """The shards of a step, in order. Raises StepError when its input cannot be cut, or into too many pieces."""
    if step.mode is StepMode.SINGLE:
        return [_single(context, step)]
    shards: list[Shard] = []
    for shard in _shards(context, step, dry_run=dry_run):
        if len(shards) >= context.services.max_items:
            words = f"the step would have more than {context.services.max_items} items (limits.max_items)"
            if step.config.split is not None and step.config.split.by is not SplitBy.REGEX:
                words += "; a larger split.size makes fewer"
            raise StepError(ErrorCode.BUDGET_EXCEEDED, words)
        shards.append(shard)
    return shards


def _single(context: JobContext, step: StepDef) -> Shard:
    """All inputs as one: map, reduce and custom steps read what they depend on; llm and image steps the sources."""
    dependencies = context.graph.dependencies[step.id]
    if not dependencies or step.kind in PROVIDER_KINDS:
        items = [item for dependency in dependencies for item in context.items.get(dependency, ())]
        return Shard(
            index=0,
            key=None,
            text="\n".join(_texts_of_sources(context, step)),
            label=step.title,
            sources=range(len(context.source_views)),
            artifacts=[sha256 for item in items for sha256 in artifact_ids(item)],
        )
    views = [view for dependency in dependencies for view in context.views(dependency)]
    text = "\n".join(view["text"] for view in views)
    if len(views) == 1:
        [view] = views
        json = view["json"]
        return Shard(
            index=0,
            key=None,
            text=text,
            json=json,
            has_json=json is not None,
            label=view["label"],
            embedding=view.get("embedding"),
        )
    return Shard(index=0, key=None, text=text, label=step.title)


def _texts_of_sources(context: JobContext, step: StepDef) -> Iterator[str]:
    for view, image in zip(context.source_views, context.source_images, strict=True):
        if image is None or not takes_images(step):
            yield view["content"]


def _shards(context: JobContext, step: StepDef, *, dry_run: bool) -> Iterator[Shard]:
    origin = input_step(step)
    if origin is None:
        yield from _of_sources(context, step)
    elif step.mode is StepMode.PER_ITEM:
        for index, (item, view) in enumerate(zip(context.items[origin], context.views(origin), strict=True)):
            json = view["json"]
            yield Shard(
                index=index,
                key=view["shard_key"],
                text=view["text"],
                json=json,
                has_json=json is not None,
                label=view["label"],
                artifacts=artifact_ids(item),
                embedding=view.get("embedding"),
            )
    elif dry_run:
        for view in context.views(origin)[:1]:
            yield Shard(index=0, key=f"{step.id}-0", text=view["text"], label=view["label"])
    else:
        yield from _of_elements(context, step, origin)


def _of_sources(context: JobContext, step: StepDef) -> Iterator[Shard]:
    index = 0
    for place, view in enumerate(context.source_views):
        is_image = takes_images(step) and context.source_images[place] is not None
        pieces = iter([Piece("", None, has_json=False)]) if is_image else _pieces(view, step.config.split)
        for piece in pieces:
            yield Shard(
                index=index,
                key=f"{step.id}-{index}",
                text=piece.text,
                json=piece.json,
                has_json=piece.has_json,
                label=view["label"],
                source=view if is_image else {**view, "content": piece.text},
                sources=[place],
            )
            index += 1


def _pieces(view: dict[str, Any], split: Split | None) -> Iterator[Piece]:
    if split is None:
        yield Piece(view["content"], None, False)
        return
    try:
        yield from split_source(split, view["content"])
    except StepError as exc:
        label = view["label"] or "the source"
        raise StepError(exc.code, f"{label}: {exc.message}", details=exc.details) from exc


def _of_elements(context: JobContext, step: StepDef, origin: StepId) -> Iterator[Shard]:
    index = 0
    for view in context.views(origin):
        elements = view["json"]
        if not isinstance(elements, list):
            words = f"config.over: the step {origin!r} did not give a JSON array but {_kind_of(elements)}"
            raise StepError(ErrorCode.OUTPUT_INVALID, words)
        for element in elements:
            yield Shard(
                index=index,
                key=f"{step.id}-{index}",
                text=element if isinstance(element, str) else dumps_compact(element),
                json=element,
                has_json=True,
                label=view["label"],
            )
            index += 1


def _kind_of(value: Any) -> str:
    if value is None:
        return "null, or no JSON at all"
    return {dict: "an object", str: "a text", bool: "a boolean"}.get(type(value), "a number")


def reduce_views(context: JobContext, step: StepDef) -> list[dict[str, Any]]:
    """What a reduce step folds: all items of its dependencies, or the sources."""
    dependencies = context.graph.dependencies[step.id]
    if dependencies:
        return [view for dependency in dependencies for view in context.views(dependency)]
    return [
        {"text": view["content"], "json": None, "label": view["label"], "shard_key": None}
        for view in context.source_views
    ]
