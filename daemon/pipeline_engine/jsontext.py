"""Strict reading and compact writing of JSON texts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

#: A deeper document is refused, so that no later walk over it runs out of stack.
MAX_DEPTH = 200

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_SHOWN = 40  # characters of an offending text that a message repeats


class JsonTextError(ValueError):
    """A text that is not the JSON we accept; says what and, where known, the line and column (from 1)."""


def loads_strict(text: str, *, first_line: int = 1) -> Any:
    """The value of a JSON text; whole numbers stay exact.

    Beyond what the json module refuses, these are errors too: NaN, Infinity, numbers that overflow (1e999), an object
    that has a key twice, half surrogate pairs, and nesting deeper than MAX_DEPTH. Raises JsonTextError, whose message
    counts lines from `first_line`.
    """
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as exc:
        what = exc.msg[:1].lower() + exc.msg[1:].removesuffix(" at")
        raise JsonTextError(f"{what} at line {exc.lineno + first_line - 1}, column {exc.colno}") from exc
    except RecursionError as exc:
        raise JsonTextError("is nested too deeply") from exc
    except _RefusedError as exc:
        raise JsonTextError(f"{exc}{_place(text, exc.needle, first_line)}") from exc
    _check_value(value, surrogates=_SURROGATE_ESCAPE.search(text) is not None)
    return value


def dumps_compact(value: object, *, default: Callable[[Any], Any] | None = None, indent: int | None = None) -> str:
    """The value as JSON without spaces, not escaped beyond need.

    `default` turns foreign objects into plain ones; `indent` spreads the text over lines. Raises
    JsonTextError for what JSON cannot say, NaN and Infinity among it.
    """
    try:
        separators = (",", ":") if indent is None else (",", ": ")
        return json.dumps(
            value, ensure_ascii=False, allow_nan=False, separators=separators, default=default, indent=indent
        )
    except RecursionError as exc:
        raise JsonTextError("is nested too deeply for JSON") from exc
    except (ValueError, TypeError) as exc:
        raise JsonTextError(f"cannot be written as JSON: {exc}") from exc


def _check_value(value: object, *, surrogates: bool) -> None:
    """Refuse a decoded value that is nested too deeply or, if asked to look, has half surrogate pairs."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        containers = []
        for part in level:
            if isinstance(part, dict | list):
                containers.append(part)
            elif surrogates and isinstance(part, str) and not _encodable(part):
                raise JsonTextError("a text has half of a surrogate pair")
        if not containers:
            return
        level = []
        for part in containers:
            level.extend(part if isinstance(part, list) else part.values())
            if surrogates and isinstance(part, dict):
                level.extend(part)
    raise JsonTextError(f"is nested deeper than {MAX_DEPTH} levels")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _RefusedError(Exception):
    """Something the json module would take; `needle` is how it stands in the text."""

    def __init__(self, message: str, needle: str) -> None:
        super().__init__(message)
        self.needle = needle


def _place(text: str, needle: str, first_line: int) -> str:
    """Where the needle first stands; the hooks of the json module do not tell."""
    index = text.find(needle)
    if index < 0:
        return ""
    line = text.count("\n", 0, index) + first_line
    return f" at line {line}, column {index - text.rfind(chr(10), 0, index)}"


def _refuse_constant(name: str) -> Any:
    raise _RefusedError(f"{name} is not JSON", name)


def _finite_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _RefusedError(f"the number {text[:_SHOWN]} is too large", text)
    return number


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # longer than the interpreter's limit of digits
        raise _RefusedError(f"the number {text[:_SHOWN]}… is too long", text) from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedError(f"the key {key[:_SHOWN]!r} stands twice in one object", json.dumps(key))
            seen.add(key)
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys,
    parse_float=_finite_float,
    parse_int=_whole_number,
    parse_constant=_refuse_constant,
)
