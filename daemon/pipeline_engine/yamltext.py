"""YAML text as JSON-like values: the core schema of YAML 1.2, refusing whatever another reader could take otherwise."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline_engine.errors import InvalidRequestError, Problem

MAX_NODES = 100_000  # after the expansion of aliases
MAX_DEPTH = 100
_MAX_DIGITS = 1000

#: libyaml's parser is an order of magnitude faster; PyYAML may have been built without it.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_STR_TAG = "tag:yaml.org,2002:str"
_PLAIN_TAGS = (None, "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")

# YAML 1.2.2, section 10.3.2 (core schema).
_CONSTANTS = dict.fromkeys(("null", "Null", "NULL", "~", "")) | {
    text: text.lower() == "true" for text in ("true", "True", "TRUE", "false", "False", "FALSE")
}
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]")

_LINE_BREAK = re.compile("\r\n|\r|\n")

_BRACES_HINT = (
    "; put a template that begins with {{ in quotes, and leave the braces out of an expression (when, filter)"
)

#: Outside of this YAML is not printable; and libyaml takes U+0085, U+2028 and U+2029 for line breaks, YAML 1.2 does not.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def read_yaml(text: str, *, name: str) -> tuple[object, dict[str, int]]:
    """The value of the one document in the text (None for an empty one), and the line of each path.

    Raises InvalidRequestError for a syntax error and for all that is ambiguous: duplicate keys, keys that are not
    texts, merge keys, tags, `.nan` and `.inf`, numbers with leading zeros, several documents, too much or too deep.
    """
    forbidden = _FORBIDDEN.search(text)
    if forbidden:
        character = f"U+{ord(forbidden[0]):04X}"
        message = f'the character {character} may not stand in YAML; write it as an escape in "double quotes"'
        raise InvalidRequestError([Problem("", message, text.count("\n", 0, forbidden.start()) + 1)], source=name)
    builder = _Builder(yaml.parse(text, Loader=_LOADER))
    try:
        value = builder.build()
    except _RefusedError as refused:
        raise InvalidRequestError([*builder.problems, refused.problem], source=name) from None
    except yaml.YAMLError as exc:
        raise InvalidRequestError([_syntax_problem(exc, text)], source=name) from exc
    if builder.problems:
        raise InvalidRequestError(builder.problems, source=name)
    return value, builder.lines


def _syntax_problem(exc: yaml.YAMLError, text: str) -> Problem:
    if not isinstance(exc, yaml.MarkedYAMLError):
        return Problem("", f"not valid YAML: {exc}")
    words = ", ".join(part for part in (exc.problem, exc.context) if part)
    mark = exc.problem_mark or exc.context_mark
    if mark is None:
        return Problem("", f"not valid YAML: {words}")
    lines = [*_LINE_BREAK.split(text), ""]  # an end that is missed comes a line behind a text that ends in its line
    hint = _hint(words, exc.context_mark, lines[mark.line], mark.column)
    return Problem("", f"not valid YAML: {words} (column {mark.column + 1}){hint}", mark.line + 1)


def _hint(words: str, context_mark: Any, line: str, column: int) -> str:
    """What is usually meant where templates and prose stand in YAML without quotes, or with some too many."""
    before, character = line[:column].rstrip(), line[column : column + 1]
    if "cannot start any token" in words and character == "\t":
        return "; indent with spaces, not with tabs"
    if "cannot start any token" in words:
        start = "{%" if character == "%" and before.endswith("{") else character
        return f"; put a text that begins with {start} in quotes"
    if "scanning an alias" in words:
        return "; put a text that begins with * in quotes"
    if "mapping values are not allowed" in words:
        return '; put a text that holds ": " in quotes'
    if "scanning a quoted scalar" in words and context_mark is not None:
        return f"; the quotes that open on line {context_mark.line + 1} are never closed"
    if before.endswith(("'", '"')) and character:
        return "; the text in quotes ends before that: put a text that holds quotes in the other kind of them"
    return ""


def resolve(text: str) -> str | int | float | bool | None:
    """What a plain (unquoted) scalar means in the core schema; raises ValueError for what is ambiguous."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a JSON number; quote it if it is a text")
    is_int = _INT.fullmatch(text) is not None
    if not (is_int or _FLOAT.fullmatch(text) or _OCTAL.fullmatch(text) or _HEXADECIMAL.fullmatch(text)):
        return text
    if len(text) > _MAX_DIGITS:
        raise ValueError("the number is too long; quote it if it is a text")
    if text.startswith(("0o", "0x")):
        return int(text[2:], 8 if text[1] == "o" else 16)
    if _LEADING_ZERO.match(text):
        raise ValueError(f"the number {text} with a leading zero is ambiguous: quote it, or write it without")
    if is_int:
        return int(text)
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text} is too large")
    return number


class _RefusedError(Exception):
    """Reading cannot go on."""

    def __init__(self, event: Any, path: str, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(path, message, event.start_mark.line + 1)


@dataclass(frozen=True, slots=True)
class _Anchored:
    value: object
    nodes: int


class _Builder:
    """Turns the parser's events into values; problems that leave the structure clear are collected."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._nodes = 0
        self._anchors: dict[str, _Anchored | None] = {}
        self.lines: dict[str, int] = {}
        self.problems: list[Problem] = []

    def build(self) -> object:
        value: object = None
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _RefusedError(event, "", "a file holds one YAML document; this is the start of a second one")
                value = self._node(next(self._events), "", 0)
        return value

    def _note(self, event: Any, path: str, message: str) -> None:
        self.problems.append(Problem(path, message, event.start_mark.line + 1))

    def _node(self, event: Any, path: str, depth: int) -> object:
        self._count(event, path, 1)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, path, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = None  # until the node is complete: an alias inside it would have no end
        before = self._nodes - 1
        value: object
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, path)
        else:
            if depth >= MAX_DEPTH:
                raise _RefusedError(event, path, f"nested deeper than {MAX_DEPTH} levels")
            if event.tag not in _PLAIN_TAGS:
                self._note(event, path, f"the tag {event.tag} is not supported")
            is_list = isinstance(event, yaml.SequenceStartEvent)
            value = self._list(path, depth + 1) if is_list else self._mapping(path, depth + 1)
        if event.anchor is not None:
            self._anchors[event.anchor] = _Anchored(value, self._nodes - before)
        return value

    def _count(self, event: Any, path: str, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise _RefusedError(event, path, f"more than {MAX_NODES} values (aliases count each time they are used)")

    def _alias(self, event: Any, path: str, depth: int) -> object:
        if event.anchor not in self._anchors:
            raise _RefusedError(event, path, f"the alias *{event.anchor} has no anchor before it")
        anchored = self._anchors[event.anchor]
        if anchored is None:
            raise _RefusedError(event, path, f"the alias *{event.anchor} stands inside its own anchor")
        self._count(event, path, anchored.nodes - 1)
        if depth + _height(anchored.value) > MAX_DEPTH:
            raise _RefusedError(event, path, f"nested deeper than {MAX_DEPTH} levels")
        return copy.deepcopy(anchored.value)

    def _scalar(self, event: Any, path: str) -> object:
        if event.tag == _STR_TAG:
            return event.value
        if event.tag is not None:
            self._note(event, path, f"the tag {event.tag} is not supported; put a text in quotes")
            return None
        if not event.implicit[0]:
            return event.value
        try:
            return resolve(event.value)
        except ValueError as exc:
            self._note(event, path, str(exc))
            return None

    def _list(self, path: str, depth: int) -> list[object]:
        values: list[object] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            here = f"{path}[{len(values)}]"
            self.lines[here] = event.start_mark.line + 1
            values.append(self._node(event, here, depth))
        return values

    def _mapping(self, path: str, depth: int) -> dict[str, object]:
        values: dict[str, object] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event, path)
            here = f"{path}.{key}" if path else key
            if key in values:
                self._note(event, here, f"the key {key!r} stands here twice (first on line {self.lines[here]})")
            self.lines.setdefault(here, event.start_mark.line + 1)
            values[key] = self._node(next(self._events), here, depth)
        return values

    def _key(self, event: Any, path: str) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            is_template = (
                isinstance(event, yaml.MappingStartEvent) and event.flow_style
            )  # {{ x }}: an object as the key
            raise _RefusedError(event, path, "a key must be a plain text" + (_BRACES_HINT if is_template else ""))
        here = f"{path}.{event.value}" if path else event.value
        if event.implicit[0] and event.tag is None and event.value == "<<":
            raise _RefusedError(event, here, "merge keys (<<) are not supported: write the keys out")
        before = len(self.problems)
        key = self._node(event, here, 0)
        if not isinstance(key, str) and len(self.problems) == before:
            self._note(event, here, f"the key {event.value} is not a text: quote it")
        return event.value


def _height(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_height, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_height, value), default=0)
    return 0
