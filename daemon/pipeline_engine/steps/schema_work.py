"""How much work a check against a JSON Schema can be at most."""

from __future__ import annotations

import math
from itertools import chain, repeat
from typing import Any
from urllib.parse import unquote

MAX_LIGHT_WORK = 4_000  # keyword applications: some 10 ms
CHARACTERS_PER_PART = 16  # of a text: in messages it costs as much as a part of a value
PARTS_PER_APPLICATION = 25  # that a message can show in the time of a keyword application

#: Keywords whose values are schemas, schemas by name or lists of schemas: for the value itself, for all of its parts,
#: and each of them for one of its parts.
_FOR_THE_VALUE = frozenset({"allOf", "anyOf", "dependentSchemas", "else", "if", "not", "oneOf", "then"})
_FOR_ALL_PARTS = frozenset({"additionalProperties", "contains", "items"})
_FOR_ONE_PART_EACH = frozenset({"prefixItems", "properties"})
_BY_NAME = frozenset({"dependentSchemas", "properties"})
#: Keywords whose values are compared with, and those that are looked at once or mean nothing to the check.
_DATA = frozenset({"const", "dependentRequired", "enum", "required", "type"})
_PLAIN = frozenset({
    "$anchor", "$comment", "$defs", "default", "definitions", "deprecated", "description", "examples",
    "exclusiveMaximum", "exclusiveMinimum", "format", "maxContains", "maxItems", "maxLength", "maxProperties",
    "maximum", "minContains", "minItems", "minLength", "minProperties", "minimum", "multipleOf", "readOnly", "title",
    "writeOnly",
})  # fmt: skip


def is_light(value: object, schema: object) -> bool:
    """Whether checking the value is at most MAX_LIGHT_WORK, and provably so; telling it costs about as much.

    A keyword that stands n levels of parts below the whole schema is applied to what lies n levels below the whole
    value, at most once to each; and each application can end in a message that shows all that lies below.
    """
    try:
        levels = _Weights(schema).of_root()
    except (_UnboundedError, RecursionError):
        return False
    total = sum(levels)
    work, size = 0, 0.0
    level = [value]
    for weight in chain(levels, repeat(0)):
        work += weight * len(level)
        parts: list[object] = []
        for part in level:
            size += _own_size(part)
            below = len(part) if isinstance(part, dict | list) else 0
            if work + total * (size + len(parts) + below) / PARTS_PER_APPLICATION > MAX_LIGHT_WORK:
                return False
            if isinstance(part, dict):
                size += sum(map(_own_size, part))
                parts += part.values()
            elif isinstance(part, list):
                parts += part
        if not parts:
            break
        level = parts
    return True


def count_parts(value: object, *, limit: int) -> int:
    """How many values a JSON value consists of, long texts and numbers counted as several; beyond the limit a guess."""
    size = 0.0
    waiting = [value]
    while waiting and size <= limit:
        part = waiting.pop()
        size += _own_size(part)
        if isinstance(part, dict):
            waiting += [*part, *part.values()]
        elif isinstance(part, list):
            waiting += part
    return math.ceil(size)


def _own_size(part: object) -> float:
    """What a value counts without its parts."""
    if isinstance(part, str):
        return 1 + len(part) / CHARACTERS_PER_PART
    return 1 + part.bit_length() / 64 if isinstance(part, int) else 1


class _UnboundedError(Exception):
    """The work cannot be told from the schema alone, or is more than light."""


class _Weights:
    """Counts the applications of a schema's keywords for a value itself, for its parts, for their parts, and so on.

    References within the schema count as what they lead to; each target is looked at once, so that references which
    double at each step are seen without doubling the time that this takes.
    """

    def __init__(self, schema: object) -> None:
        self._root = schema
        self._targets: dict[str, list[int] | None] = {}  # None while it is counted
        self._looked_at = 0

    def of_root(self) -> list[int]:
        """The counts, by level. Raises _UnboundedError."""
        root = self._root
        # The draft that is meant is always ours; within a schema the keyword would bring in the words of another one.
        return self._of({key: root[key] for key in root if key != "$schema"} if isinstance(root, dict) else root)

    def _of(self, schema: object) -> list[int]:
        self._count()
        levels = [1]
        for key, value in schema.items() if isinstance(schema, dict) else ():
            self._count()
            if key == "$ref":
                levels[0] += 1  # looking it up takes as long as an application
                _add(levels, self._of_target(value))
            elif key in _FOR_THE_VALUE:
                levels[0] += 1
                for subschema in _subschemas(key, value):
                    _add(levels, self._of(subschema))
            elif key in _FOR_ALL_PARTS:
                _add(levels, [1, 1])  # the keyword itself goes through the parts too
                _add(levels, self._of(value), below=1)
            elif key in _FOR_ONE_PART_EACH:
                levels[0] += 1
                for subschema in _subschemas(key, value):
                    # Once for each value that has such a part, however many others it has.
                    first, *rest = self._of(subschema)
                    _add(levels, [first])
                    _add(levels, rest, below=2)
            elif key in _DATA:
                levels[0] += 1 + count_parts(value, limit=MAX_LIGHT_WORK)
            elif key in _PLAIN:
                levels[0] += 1
            else:
                # pattern, uniqueItems and their like take more than one step; $id and others change what names mean.
                raise _UnboundedError
        if sum(levels) > MAX_LIGHT_WORK:
            raise _UnboundedError
        return levels

    def _of_target(self, reference: object) -> list[int]:
        if not isinstance(reference, str) or not reference.startswith("#/"):
            raise _UnboundedError
        if reference not in self._targets:
            self._targets[reference] = None
            self._targets[reference] = self._of(_target(self._root, reference))
        levels = self._targets[reference]
        if levels is None:  # it leads back to itself
            raise _UnboundedError
        return levels

    def _count(self) -> None:
        self._looked_at += 1
        if self._looked_at > MAX_LIGHT_WORK:
            raise _UnboundedError


def _subschemas(key: str, value: Any) -> list[Any]:
    if key in _BY_NAME:
        return list(value.values()) if isinstance(value, dict) else []
    return value if isinstance(value, list) else [value]


def _target(root: Any, reference: str) -> Any:
    """What a JSON pointer leads to."""
    target = root
    for segment in unquote(reference.removeprefix("#/")).split("/"):
        try:
            target = target[int(segment)] if isinstance(target, list) else target[_unescaped(segment)]
        except (LookupError, TypeError, ValueError):
            raise _UnboundedError from None
        if isinstance(target, dict) and "$id" in target:  # references in there are not relative to our root
            raise _UnboundedError
    return target


def _unescaped(segment: str) -> str:
    return segment.replace("~1", "/").replace("~0", "~")


def _add(levels: list[int], more: list[int], *, below: int = 0) -> None:
    levels.extend([0] * (below + len(more) - len(levels)))
    for depth, weight in enumerate(more, below):
        levels[depth] += weight
