"""How much a JMESPath expression makes of its input: how many times of it by the syntax, and what is new beside it.

Each character of a result is one of the input, or of what was made while the expression was applied (keys, literals,
brackets, what functions write). No character comes more often than `growth_of` says, so growth × (the size of the input +
what `Search` counted) bounds the result.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jmespath import functions, visitor

_CEILING = 10**12  # enough to be told; what doubles a thousand times has no size to speak of
_CONTAINER_CHARS = 16  # that a list or an object counts, with its brackets
_ENTRY_CHARS = 8  # that each entry of it counts: its pointer, which is also `null` or `false` with a comma
_QUOTES_CHARS = 4  # around a key, with its colon and comma
_NUMBER_CHARS = 24  # of a float
_LOOKING = frozenset({"contains", "starts_with", "ends_with"})  # functions that copy nothing of what they are given

Node = Mapping[str, Any]
Path = tuple[str, ...]


class TooMuchError(Exception):
    """An expression makes more than it may."""


@dataclass(slots=True)
class _Made:
    """What an expression has made so far, and the most that it may; in characters."""

    most: int
    chars: int = 0

    def add(self, chars: int) -> None:
        self.chars += chars
        if self.chars > self.most:
            raise TooMuchError


class Search(visitor.TreeInterpreter):
    """Applies an expression to any number of values, and counts what it makes of them all.

    `parsed` is the tree of the compiled expression; `most` are the characters that may be made. What is made of one part
    of a value is counted before the next is made, so that no more than a copy of what is there comes on top.
    """

    def __init__(self, parsed: Any, *, most: int) -> None:
        self._parsed = parsed
        self._made = _Made(most)
        self._literals: dict[int, int] = {}  # what each literal counts, by the id of its node
        super().__init__(visitor.Options(custom_functions=_Functions(self._made)))

    def apply(self, value: object) -> Any:
        """Raises JMESPathError, TooMuchError, and what the functions of JMESPath let through."""
        return self.visit(self._parsed, value)

    def visit_literal(self, node: Any, value: Any) -> Any:
        size = self._literals.get(id(node))
        if size is None:
            size = self._literals[id(node)] = len(json.dumps(node["value"], ensure_ascii=False))
        self._made.add(size)
        return super().visit_literal(node, value)

    def visit_comparator(self, node: Any, value: Any) -> Any:
        self._only_look_at(node["children"])
        return super().visit_comparator(node, value)

    def visit_function_expression(self, node: Any, value: Any) -> Any:
        if node["value"] in _LOOKING:
            self._only_look_at(node["children"])
        result = super().visit_function_expression(node, value)
        if node["value"] not in _COUNTING:
            self._made.add(_size(result))
        return result

    def visit_multi_select_dict(self, node: Any, value: Any) -> Any:
        self._made.add(sum(len(child["value"]) + _QUOTES_CHARS for child in node["children"]))
        return self._counted(super().visit_multi_select_dict(node, value))

    def visit_multi_select_list(self, node: Any, value: Any) -> Any:
        return self._counted(super().visit_multi_select_list(node, value))

    def visit_projection(self, node: Any, value: Any) -> Any:
        return self._counted(super().visit_projection(node, value))

    def visit_value_projection(self, node: Any, value: Any) -> Any:
        return self._counted(super().visit_value_projection(node, value))

    def visit_filter_projection(self, node: Any, value: Any) -> Any:
        return self._counted(super().visit_filter_projection(node, value))

    def visit_flatten(self, node: Any, value: Any) -> Any:
        return self._counted(super().visit_flatten(node, value))

    def visit_slice(self, node: Any, value: Any) -> Any:
        return self._counted(super().visit_slice(node, value))

    def _counted(self, result: Any) -> Any:
        self._made.add(_size(result))
        return result

    def _only_look_at(self, nodes: Sequence[Node]) -> None:
        """Literals among these stay where they are: a list of a thousand names to compare with is no part of a result."""
        for node in nodes:
            if node["type"] == "literal":
                self._literals[id(node)] = 0


def _size(value: object) -> int:
    """Of a value itself, without what a list or an object holds."""
    match value:
        case str():
            return len(value)
        case list() | dict():
            return _CONTAINER_CHARS + _ENTRY_CHARS * len(value)
        case int():  # also the whole of a float: 1e308 has 309 digits
            return _ENTRY_CHARS + value.bit_length() // 3
        case _:
            return _NUMBER_CHARS


class _Functions(functions.Functions):
    """JMESPath's, of which these two count what they write before it is there."""

    def __init__(self, made: _Made) -> None:
        self._made = made

    @functions.signature({"types": ["string"]}, {"types": ["array-string"]})
    def _func_join(self, separator: str, texts: list[str]) -> str:
        self._made.add(len(separator) * len(texts) + sum(map(len, texts)))
        return separator.join(texts)

    @functions.signature({"types": []})
    def _func_to_string(self, value: object) -> str:
        if isinstance(value, str):
            return value
        written = io.StringIO()
        for piece in _ENCODER.iterencode(value):  # in one go, nested ones would double each backslash unseen
            self._made.add(len(piece))
            written.write(piece)
        return written.getvalue()


_COUNTING = frozenset({"join", "to_string"})
_ENCODER = json.JSONEncoder(separators=(",", ":"), default=str)  # as JMESPath's to_string writes


@dataclass(frozen=True, slots=True)
class _Growth:
    """Of a node's result, and the most that there is at a time until it is there; in inputs."""

    result: int
    peak: int


_INPUT = _Growth(1, 1)


def growth_of(parsed: Node) -> int:
    """The growth at the worst, from the syntax alone; `parsed` is the tree of a compiled expression. At least 1."""
    return _of(parsed).peak


def _of(node: Node) -> _Growth:
    children: Sequence[Any] = node["children"]
    match node["type"]:
        case "slice" | "literal":  # the children of a slice are numbers; what literals make is counted when they do
            return _INPUT
        case "pipe" | "subexpression" | "index_expression" | "projection" | "value_projection":
            return _one_after_the_other(children)
        case "filter_projection":
            base, kept, condition = map(_of, children)
            made = _then(base, kept)
            return _Growth(made.result, max(made.peak, _then(base, condition).peak))
        case "comparator" | "not_expression":
            return _Growth(1, _side_by_side(children).peak)
        case "or_expression" | "and_expression":
            tried = [_of(child) for child in children]
            return _Growth(max(one.result for one in tried), max(one.peak for one in tried))
        case "function_expression":
            arguments = [child for child in children if child["type"] != "expref"]
            applied = [child for child in children if child["type"] == "expref"]
            return _then(_side_by_side(arguments), _one_after_the_other(applied))
        case _ if children:
            return _side_by_side(children)
        case _:
            return _INPUT


def _one_after_the_other(nodes: Sequence[Node]) -> _Growth:
    """Each works on what the one before has made."""
    made = _INPUT
    for node in nodes:
        made = _then(made, _of(node))
    return made


def _then(first: _Growth, second: _Growth) -> _Growth:
    result, peak = first.result * second.result, max(first.peak, first.result * second.peak)
    return _Growth(min(result, _CEILING), min(peak, _CEILING))


def _side_by_side(nodes: Sequence[Node]) -> _Growth:
    """All work on the same, but each perhaps on a part of its own. What is asked is how often one part is used."""
    parts: list[tuple[Path, _Growth]] = []
    result, peak = 1, 1
    for node in nodes:
        path, growth = _part(node).path, _of(node)
        if path is not None:
            parts.append((path, growth))
        result, peak = max(result, growth.result), max(peak, growth.peak)
    for inner in {path for path, _ in parts}:
        around = [growth for path, growth in parts if inner[: len(path)] == path]
        result = max(result, sum(growth.result for growth in around))
        peak = max(peak, sum(growth.peak for growth in around))
    return _Growth(min(result, _CEILING), min(peak, _CEILING))


@dataclass(frozen=True, slots=True)
class _Part:
    """What of the input a node looks at: all that is at or below a path of fields, in lists or not; None: nothing of it.

    `plain` if the node's result is that, or some of it, so that what comes after it looks at a part of the part.
    """

    path: Path | None
    plain: bool = False


def _part(node: Node) -> _Part:
    children: Sequence[Any] = node["children"]
    match node["type"]:
        case "field":
            return _Part((node["value"],), plain=True)
        case "current" | "identity" | "index" | "slice":
            return _Part((), plain=True)
        case "literal" | "expref":  # an expref is applied to the other arguments
            return _Part(None)
        case "flatten" | "key_val_pair":
            return _part(children[0])
        case "value_projection" | "filter_projection":  # the fields of `*` are any; a condition looks at all
            return _Part(_part(children[0]).path)
        case "pipe" | "subexpression" | "index_expression" | "projection":
            return _part_of_chain(children)
        case _:
            paths = [path for path in (_part(child).path for child in children) if path is not None]
            return _Part(_common(paths) if paths else None)


def _part_of_chain(nodes: Sequence[Node]) -> _Part:
    whole: Path = ()
    for position, node in enumerate(nodes):
        part = _part(node)
        if part.path is None:  # nothing of what it is applied to; what comes before it was looked at none the less
            return _Part(whole if position else None)
        whole += part.path
        if not part.plain:
            return _Part(whole)
    return _Part(whole, plain=True)


def _common(paths: Sequence[Path]) -> Path:
    """What they all begin with; in their order, the first and the last differ most."""
    first, last = min(paths), max(paths)
    same = 0
    while same < min(len(first), len(last)) and first[same] == last[same]:
        same += 1
    return first[:same]
