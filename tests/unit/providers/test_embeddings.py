"""Vectors that belong to their inputs, or an error."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest

from pipeline_engine.providers.embeddings import checked_vectors, ordered_vectors


def entry(*numbers: float, index: int | None = None) -> dict[str, Any]:
    return {"embedding": list(numbers), **({} if index is None else {"index": index})}


def test_vectors_are_ordered_by_their_index() -> None:
    assert ordered_vectors([entry(3, index=2), entry(1, index=0), entry(2, index=1)], 3) == [[1], [2], [3]]


def test_without_an_index_the_order_is_the_answers() -> None:
    assert ordered_vectors([entry(1), entry(2)], 2) == [[1], [2]]


def test_base64_is_little_endian_float32() -> None:
    encoded = base64.b64encode(struct.pack("<3f", 0.5, -1.25, 2.0)).decode()
    assert ordered_vectors([{"embedding": encoded, "index": 0}], 1) == [[0.5, -1.25, 2.0]]


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (None, 1),
        ([], 1),
        ([entry(1)], 2),
        ([entry(1), entry(2)], 1),
        ([entry(1, index=0), entry(2, index=0)], 2),
        ([entry(1, index=0), entry(2, index=2)], 2),
        ([entry(1, index=0), entry(2)], 2),
        ([entry(1), entry(2, 3)], 2),
        ([entry()], 1),
        ([{"embedding": None}], 1),
        ([{"embedding": ["x"]}], 1),
        ([{"embedding": [None]}], 1),
        ([{"embedding": [float("inf")]}], 1),
        ([{"embedding": [10**400]}], 1),
        ([{"embedding": [True]}], 1),
        ([{"embedding": base64.b64encode(b"12345").decode()}], 1),
        ([{"embedding": "not base64!"}], 1),
        (["text"], 1),
    ],
)
def test_vectors_that_cannot_be_trusted_are_refused(data: Any, count: int) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - one of many reasons
        ordered_vectors(data, count)


def test_plain_lists_are_checked_too() -> None:
    assert checked_vectors([[1, 2], [3, 4]], 2) == [[1.0, 2.0], [3.0, 4.0]]
    with pytest.raises(ValueError, match="0 embeddings for 1 inputs"):
        checked_vectors(None, 1)
