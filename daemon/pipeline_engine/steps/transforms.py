"""The operations of map and reduce steps that run without a provider.

They work on items as templates see them: `{"text", "json", "label", "shard_key"}`, and `"embedding"` in those that have
one. What takes longer than a few
milliseconds (a large text, a slow pattern or template) runs in a worker thread.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jmespath
import regex
import trio
from jmespath.exceptions import JMESPathError

from pipeline_engine.errors import ErrorCode, StepError
from pipeline_engine.jsontext import JsonTextError, dumps_compact, loads_strict
from pipeline_engine.models import MapOperation, ParseFormat, ReduceOperation, StepConfig
from pipeline_engine.renderer import Renderer
from pipeline_engine.steps.growth import Search, TooMuchError, growth_of
from pipeline_engine.steps.records import csv_rows, jsonl_values, logfmt_record, text_lines

Item = Mapping[str, Any]

DEFAULT_TOP = 10  # elements that reduce: top keeps
NUMBER_CHARS = 20  # that a number of a vector has as JSON, about
INLINE_CHARS = 16_384  # longer texts are transformed in a worker thread
INLINE_SECONDS = 0.005  # for a pattern on the event loop
PATTERN_SECONDS = 10.0  # for a pattern in a worker thread
#: How many times its input a JMESPath expression may make of it, by its syntax: at all, and without a look at how large
#: that is.
MAX_GROWTH = 1_000
FREE_GROWTH = 16
#: That may come of the input beyond FREE_GROWTH, and of all that the expression adds: keys, literals, what it writes.
MAX_GROWN_CHARS = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class MapOutput:
    """What an operation made; `json` means something only if `has_json` is true (it can be null). `embedding` is that of
    an item that stays as it is.
    """

    text: str
    json: object | None = None
    has_json: bool = False
    embedding: list[float] | None = None


async def apply_map(
    config: StepConfig,
    item: Item,
    *,
    renderer: Renderer,
    context: Mapping[str, object],
    workers: trio.CapacityLimiter,
) -> MapOutput | None:
    """What `config.map` makes of an item; None when a filter drops it. Raises StepError.

    - identity: the item as it is.
    - template: `template`, rendered with the context.
    - select: the JMESPath `expression` on the item's json, or on `{"text", "embedding"}`. A string is also the text, else that is the JSON.
    - filter: the item as it is when `expression` (the templates' language) is true.
    - parse: the item's text, and its json by `format`: json (strict), jsonl (a list), csv (a list of objects), logfmt
      (an object for one line, a list of objects for several or none; blank lines do not count).
    - regex: `pattern` (Python's syntax) searched in the text: the match, as json an object of the named groups, or
      without any the match itself. No match: an empty text, json null.

    What may take long runs in a worker thread, under the limiter `workers`.
    """
    match config.map:
        case MapOperation.TEMPLATE:
            return MapOutput(await renderer.render(config.template or "", {"item": item, **context}))
        case MapOperation.FILTER:
            keep = await renderer.evaluate(config.expression or "", {"item": item, **context})
            return _unchanged(item) if keep else None
        case MapOperation.REGEX:
            return _matched(await _found(config.pattern or "", item, workers))
        case _:
            work = partial(_mapped, config, item)
            is_select = config.map is MapOperation.SELECT
            size = _growth(config.expression or "") * _size(item) if is_select else len(item["text"])
            return await _run(work, size=size, workers=workers)


def _mapped(config: StepConfig, item: Item, most: int) -> MapOutput:
    match config.map:
        case MapOperation.IDENTITY:
            return _unchanged(item)
        case MapOperation.SELECT:
            _check_growth(config.expression or "", [item])
            return _of_value(_applied(_search(config.expression or "", most), _document(item), item))
        case MapOperation.PARSE:
            return MapOutput(item["text"], _parsed(item, config.format), has_json=True)
        case _:
            raise ValueError(f"config.map is {config.map}")


async def _found(pattern: str, item: Item, workers: trio.CapacityLimiter) -> regex.Match[str] | None:
    """The first match. Patterns can take exponential time: a short try here, a longer one where it disturbs nobody."""
    search = partial(regex.search, pattern, item["text"])
    try:
        return search(timeout=INLINE_SECONDS)
    except TimeoutError:
        try:
            whole = partial(search, timeout=PATTERN_SECONDS)
            return await trio.to_thread.run_sync(whole, abandon_on_cancel=True, limiter=workers)
        except TimeoutError as exc:
            words = f"{item['label']}: config.pattern took longer than {PATTERN_SECONDS:g} s"
            raise StepError(ErrorCode.TIMEOUT, words) from exc


async def _run(work: Callable[[int], MapOutput], *, size: int, workers: trio.CapacityLimiter) -> MapOutput:
    """Work on, or making, so many characters: at once when they are few, else in a thread, so that it holds nobody up.

    `work` is told how much a JMESPath expression may add to its input. Raises StepError where that is not enough.
    """
    if size <= INLINE_CHARS:
        await trio.lowlevel.checkpoint()
        with suppress(TooMuchError):
            return work(INLINE_CHARS)
    try:
        return await trio.to_thread.run_sync(work, MAX_GROWN_CHARS, limiter=workers)
    except TooMuchError as exc:
        words = f"the expression makes too much of its input; at most {MAX_GROWN_CHARS} characters are allowed"
        raise StepError(ErrorCode.OUTPUT_INVALID, words) from exc


async def apply_reduce(
    config: StepConfig,
    items: Sequence[Item],
    *,
    renderer: Renderer,
    context: Mapping[str, object],
    workers: trio.CapacityLimiter,
) -> MapOutput:
    """What `config.reduce` makes of all items. Raises StepError.

    - concat: the texts, joined by `separator` (a newline).
    - collect: a JSON array with each item's json; where it has none `{"text", "embedding"}` of an embedding, else its text.
    - merge: the items' json objects in one; of a key that comes twice the last value stays.
    - count_by: how often each value of the JMESPath `by` occurs, as an object from the value (not a string: its JSON;
      nothing: "null") to the count, the highest count first, equal ones by key.
    - top: the `n` (10) elements with the highest value of the JMESPath `by`, equal ones in their order. Without `by`
      the element itself counts, and an object of numbers, as count_by makes it, is taken as its entries
      `{"key", "count"}`. Numbers can be texts ("12"); elements without a value are left out.
    - template: `template`, rendered with the context and `items`.

    For count_by and top the elements are what collect takes; a list counts as its elements.
    """
    if config.reduce is ReduceOperation.TEMPLATE:
        scope = {**context, "items": list(items)}
        return MapOutput(await renderer.render(config.template or "", scope))
    size = sum(map(_size, items))
    growth = 1 if config.by is None else _growth(config.by)
    return await _run(partial(_reduced, config, items), size=growth * size, workers=workers)


def _reduced(config: StepConfig, items: Sequence[Item], most: int) -> MapOutput:
    if config.by is not None:
        _check_growth(config.by, items)
    match config.reduce:
        case ReduceOperation.CONCAT:
            separator = "\n" if config.separator is None else config.separator
            return MapOutput(separator.join(item["text"] for item in items))
        case ReduceOperation.COLLECT:
            return _of_value([_value(item) for item in items])
        case ReduceOperation.MERGE:
            return _of_value(_merged(items))
        case ReduceOperation.COUNT_BY:
            return _of_value(_counted(_search(config.by or "@", most), items))
        case ReduceOperation.TOP:
            by = None if config.by is None else _search(config.by, most)
            return _of_value(_top(by, config.n or DEFAULT_TOP, items))
        case _:
            raise ValueError(f"config.reduce is {config.reduce}")


def check_jmespath(expression: str) -> str | None:
    """What is wrong with a JMESPath expression; None if it compiles, and cannot multiply its input beyond measure."""
    try:
        growth = _compiled(expression).growth
    except (JMESPathError, RecursionError) as exc:
        return f"is not JMESPath: {_first_line(exc)}"
    if growth > MAX_GROWTH:
        return f"multiplies its input up to {growth} times; at most {MAX_GROWTH} are allowed"
    return None


@dataclass(frozen=True, slots=True)
class _Expression:
    parsed: jmespath.parser.ParsedResult
    growth: int


@lru_cache(maxsize=256)
def _compiled(expression: str) -> _Expression:
    parsed = jmespath.compile(expression)
    return _Expression(parsed, growth_of(parsed.parsed))


def _growth(expression: str) -> int:
    try:
        return _compiled(expression).growth
    except (JMESPathError, RecursionError) as exc:
        message = f"the expression is not JMESPath: {_first_line(exc)}"
        raise StepError(ErrorCode.OUTPUT_INVALID, message) from exc


def _check_growth(expression: str, items: Sequence[Item]) -> None:
    """Raises StepError when the expression could make too much of these items."""
    growth = _growth(expression)
    if growth <= FREE_GROWTH:
        return
    size = sum(len(_as_text(_value(item))) for item in items)
    if growth * size > MAX_GROWN_CHARS:
        words = f"the expression multiplies its input of {size} characters up to {growth} times"
        raise StepError(ErrorCode.OUTPUT_INVALID, f"{words}; at most {MAX_GROWN_CHARS} characters are allowed")


def _search(expression: str, most: int) -> Search:
    """To apply the expression; what it adds to its input may become so many characters in the result."""
    compiled = _compiled(expression)
    return Search(compiled.parsed.parsed, most=most // compiled.growth)


def _applied(search: Search, value: object, item: Item) -> Any:
    try:
        return search.apply(value)
    except (JMESPathError, RecursionError, ArithmeticError, TypeError, ValueError) as exc:
        # The last three are what its functions let through: ceil of an infinite number, contains of unlike things.
        message = f"the expression cannot be applied to {item['label']}: {_first_line(exc)}"
        raise StepError(ErrorCode.OUTPUT_INVALID, message) from exc


def _first_line(exc: Exception) -> str:
    return str(exc).strip().partition("\n")[0].rstrip(":")


def _unchanged(item: Item) -> MapOutput:
    return MapOutput(item["text"], item["json"], has_json=item["json"] is not None, embedding=item.get("embedding"))


def _of_value(value: Any) -> MapOutput:
    """A JSON value and its text: a string as it is, all else as JSON."""
    return MapOutput(_as_text(value), value, has_json=True)


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return dumps_compact(value)
    except JsonTextError as exc:
        raise StepError(ErrorCode.OUTPUT_INVALID, f"the result {exc}") from exc


def _parsed(item: Item, format_: ParseFormat | None) -> Any:
    text: str = item["text"]
    try:
        match format_:
            case ParseFormat.JSON:
                return loads_strict(text.removeprefix("\N{BYTE ORDER MARK}"))
            case ParseFormat.JSONL:
                return [value for _, value in jsonl_values(text)]
            case ParseFormat.CSV:
                return list(csv_rows(text))
            case ParseFormat.LOGFMT:
                lines = enumerate(text_lines(text), 1)
                records = [logfmt_record(line, number) for number, line in lines if line and not line.isspace()]
                return records[0] if len(records) == 1 else records
            case None:
                raise ValueError("config.format is not set")
    except (JsonTextError, StepError) as exc:
        message = f"{item['label']} does not parse as {format_}: {exc}"
        raise StepError(ErrorCode.OUTPUT_INVALID, message) from exc


def _matched(match: regex.Match[str] | None) -> MapOutput:
    if match is None:
        return MapOutput("", None, has_json=True)
    return MapOutput(match.group(), match.groupdict() or match.group(), has_json=True)


def _document(item: Item) -> Any:
    """The JSON value of an item: its json; of an embedding, which has none, its text with its vector."""
    if item["json"] is None and "embedding" in item:
        return {"text": item["text"], "embedding": item["embedding"]}
    return item["json"]


def _value(item: Item) -> Any:
    document = _document(item)
    return item["text"] if document is None else document


def _size(item: Item) -> int:
    """About how many characters the item has as JSON."""
    return len(item["text"]) + NUMBER_CHARS * len(item.get("embedding", ()))


def _elements(items: Sequence[Item]) -> Iterator[tuple[Any, Item]]:
    """Each element with the item it comes from, for messages."""
    for item in items:
        value = _value(item)
        if isinstance(value, list):
            yield from ((element, item) for element in value)
        else:
            yield value, item


def _merged(items: Sequence[Item]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for item in items:
        if not isinstance(item["json"], dict):
            raise StepError(ErrorCode.OUTPUT_INVALID, f"merge needs JSON objects; {item['label']} has none")
        merged.update(item["json"])
    return merged


def _counted(by: Search, items: Sequence[Item]) -> dict[str, int]:
    counts = Counter(_as_text(_applied(by, element, item)) for element, item in _elements(items))
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def _top(by: Search | None, n: int, items: Sequence[Item]) -> list[Any]:
    ranked: list[tuple[float, Any]] = []
    for element, item in _elements(items):
        if by is None and isinstance(element, dict):
            entries = [({"key": key, "count": count}, count) for key, count in element.items()]
        else:
            entries = [(element, element if by is None else _applied(by, element, item))]
        for shown, value in entries:
            if value is not None:
                ranked.append((_number(value, item), shown))
    ranked.sort(key=lambda entry: -entry[0])
    return [shown for _, shown in ranked[:n]]


def _number(value: object, item: Item) -> float:
    """A number to compare by; whole numbers stay exact."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    number = math.nan
    if isinstance(value, str):
        with suppress(ValueError):
            number = float(value)
    if not math.isfinite(number):
        message = f"top compares numbers, but {item['label']} has {_as_text(value)[:40]}"
        raise StepError(ErrorCode.OUTPUT_INVALID, message)
    return number
