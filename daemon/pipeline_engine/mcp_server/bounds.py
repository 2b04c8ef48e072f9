"""Keeps what goes to a model small: texts are cut, and say how much is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

#: Characters of one answer, some 10,000 tokens: clients refuse or cut what is much longer.
ANSWER = 40_000

LONGEST_TEXT = 500  # characters of a text somewhere inside of an answer
MOST_ELEMENTS = 30  # of a list or an object somewhere inside of an answer


def shares(lengths: Sequence[int], budget: int) -> list[int]:
    """How much of each length may be given, so that the sum keeps within the budget: short ones whole, long ones alike."""
    granted = [0] * len(lengths)
    shortest_first = sorted(range(len(lengths)), key=lengths.__getitem__)
    for place, index in enumerate(shortest_first):
        granted[index] = min(lengths[index], budget // (len(lengths) - place))
        budget -= granted[index]
    return granted


def first_of(values: Iterable[T], most: int) -> list[T]:
    """The first values, as many as an answer holds, and `most` of them."""
    given: list[T] = []
    size = 0
    for value in values:
        size += len(msgspec.json.encode(value))
        if given and (len(given) == most or size > ANSWER):
            break
        given.append(value)
    return given


def cut_text(text: str, limit: int = LONGEST_TEXT) -> str:
    """The beginning of the text, and how many characters more it has."""
    return text if len(text) <= limit else f"{text[:limit]}… [{len(text) - limit} more characters]"


def cut_value(value: Any) -> Any:
    """The JSON value with its long texts, lists and objects cut."""
    if isinstance(value, str):
        return cut_text(value)
    if isinstance(value, dict):
        parts = {key: cut_value(part) for key, part in list(value.items())[:MOST_ELEMENTS]}
        return parts if len(parts) == len(value) else {**parts, "…": f"{len(value) - len(parts)} more keys"}
    if isinstance(value, list):
        elements = [cut_value(part) for part in value[:MOST_ELEMENTS]]
        return elements if len(elements) == len(value) else [*elements, f"… {len(value) - len(elements)} more"]
    return value
