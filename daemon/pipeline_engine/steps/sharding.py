"""Cutting a source's text into shards (`config.split`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import regex

from pipeline_engine.errors import ErrorCode, StepError
from pipeline_engine.jsontext import JsonTextError, dumps_compact, loads_strict
from pipeline_engine.models import Split, SplitBy
from pipeline_engine.pipeline import DEFAULT_SPLIT_SIZES
from pipeline_engine.steps.records import csv_rows, jsonl_values, text_lines

PATTERN_SECONDS = 10.0  # for all of a source; patterns can take exponential time


@dataclass(frozen=True, slots=True)
class Piece:
    """One shard's content; `json` means something only if `has_json` is true (it can be null)."""

    text: str
    json: object | None = None
    has_json: bool = False


def split_source(split: Split, source_text: str) -> Iterator[Piece]:
    """The pieces of a text, in order; each is made when it is asked for.

    - lines: `size` lines a piece (1). Lines end at a newline, and only there; a carriage return stays. The newline that
      ends a piece is not part of it, and nothing after the last newline is no line.
    - chars: `size` code points a piece (4,000).
    - regex: `pattern` separates the pieces; empty pieces are left out.
    - jsonl, json_array, csv: an element a piece, its text the line, or the compact JSON (a string as it is). With
      `size` a piece has a list of up to that many elements, its text that list as JSON. Blank lines of jsonl are no elements.

    `overlap` lines, characters or elements of a piece stand again at the start of the next. Raises StepError
    (output_invalid) with the line when a text is not what `by` says.
    """
    match split.by:
        case SplitBy.LINES:
            for group in _windows(text_lines(source_text), split.size or 1, split.overlap):
                yield Piece("\n".join(group))
        case SplitBy.CHARS:
            yield from _chars(source_text, split.size or DEFAULT_SPLIT_SIZES[SplitBy.CHARS], split.overlap)
        case SplitBy.REGEX:
            yield from _between(split.pattern or "", source_text)
        case SplitBy.JSONL:
            elements = (Piece(line, value, has_json=True) for line, value in jsonl_values(source_text))
            yield from _grouped(elements, split.size, split.overlap)
        case SplitBy.JSON_ARRAY:
            yield from _grouped(map(_element, _array(source_text)), split.size, split.overlap)
        case SplitBy.CSV:
            yield from _grouped(map(_element, csv_rows(source_text)), split.size, split.overlap)


def _windows(parts: Iterable[Any], size: int, overlap: int) -> Iterator[list[Any]]:
    """Lists of `size` parts, each beginning with the last `overlap` parts of the one before."""
    source = iter(parts)
    window: deque[Any] = deque(islice(source, size), maxlen=size)
    if not window:
        return
    yield list(window)
    while new := list(islice(source, size - overlap)):
        kept = list(window)[len(window) - overlap :]
        window = deque(kept + new, maxlen=size)
        yield list(window)


def _chars(text: str, size: int, overlap: int) -> Iterator[Piece]:
    for start in range(0, len(text), size - overlap):
        yield Piece(text[start : start + size])
        if start + size >= len(text):
            return


def _between(pattern: str, text: str) -> Iterator[Piece]:
    start = 0
    try:
        for match in regex.finditer(pattern, text, timeout=PATTERN_SECONDS):
            if match.start() > start:
                yield Piece(text[start : match.start()])
            start = max(start, match.end())
    except TimeoutError as exc:
        words = f"config.split.pattern took longer than {PATTERN_SECONDS:g} s"
        raise StepError(ErrorCode.TIMEOUT, words) from exc
    if start < len(text):
        yield Piece(text[start:])


def _array(text: str) -> list[Any]:
    try:
        value = loads_strict(text.removeprefix("\N{BYTE ORDER MARK}"))
    except JsonTextError as exc:
        raise StepError(ErrorCode.OUTPUT_INVALID, f"the source is not JSON: {exc}") from exc
    if not isinstance(value, list):
        raise StepError(ErrorCode.OUTPUT_INVALID, "the source is JSON, but not an array (at line 1)")
    return value


def _element(value: object) -> Piece:
    return Piece(value if isinstance(value, str) else dumps_compact(value), value, has_json=True)


def _grouped(elements: Iterable[Piece], size: int | None, overlap: int) -> Iterator[Piece]:
    if size is None:
        yield from elements
        return
    for group in _windows(elements, size, overlap):
        yield _element([piece.json for piece in group])
