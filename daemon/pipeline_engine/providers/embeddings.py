"""Embedding vectors from an answer: decoded, ordered and checked."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

_FLOAT_SIZE = 4  # bytes of a little-endian float32


def ordered_vectors(data: Any, count: int) -> list[list[float]]:
    """The vectors of OpenAI's `data`, in the order of the inputs, whatever order they came in.

    Raises ValueError, saying what is wrong, unless there is exactly one vector of one dimension for each input.
    """
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
        raise ValueError("has no list of embeddings")
    indices = [entry.get("index") for entry in data]
    if any(index is not None for index in indices):
        if sorted(indices, key=repr) != sorted(range(len(data)), key=repr):
            raise ValueError(f"numbers its embeddings {indices}")
        data = sorted(data, key=lambda entry: int(entry["index"]))
    return checked_vectors([entry.get("embedding") for entry in data], count)


def checked_vectors(vectors: Any, count: int) -> list[list[float]]:
    """The vectors as lists of finite numbers; ValueError unless there are `count` of one dimension."""
    found = len(vectors) if isinstance(vectors, list) else 0
    if found != count:
        raise ValueError(f"has {found} embeddings for {count} inputs")
    decoded = [_vector(vector) for vector in vectors]
    dimensions = sorted({len(vector) for vector in decoded})
    if len(dimensions) > 1:
        raise ValueError(f"mixes embeddings of the dimensions {dimensions}")
    return decoded


def _vector(value: Any) -> list[float]:
    """A list of numbers, or base64 of float32: servers send either, whichever was asked for."""
    if isinstance(value, str):
        data = base64.b64decode(value, validate=True)
        if len(data) % _FLOAT_SIZE:
            raise ValueError(f"has an embedding of {len(data)} bytes, which are no 32-bit numbers")
        value = list(struct.unpack(f"<{len(data) // _FLOAT_SIZE}f", data))
    if not isinstance(value, list) or not value:
        raise ValueError("has an embedding without numbers")
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in value):
        raise ValueError("has an embedding with something that is no number")
    try:
        vector = [float(number) for number in value]
    except OverflowError:  # of a whole number, which can have any length
        vector = [math.inf]
    if not all(map(math.isfinite, vector)):
        raise ValueError("has an embedding with a number that is not finite")
    return vector
