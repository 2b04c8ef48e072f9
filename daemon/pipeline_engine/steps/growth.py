"""How many times as large as its input a JMESPath expression can make what it works on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CHARACTERS_PER_INPUT = 64  # of keys and literals: so much text of its own counts as the input once more
_CEILING = 10**12  # enough to be told; what doubles a thousand times has no size to speak of

Node = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Growth:
    """Of a node's result, and the most that there is at a time until it is there; in inputs."""

    result: float
    peak: float


_INPUT = _Growth(1, 1)


def growth_of(parsed: Node) -> int:
    """The growth at the worst, from the syntax alone; `parsed` is the tree of a compiled expression. At least 1."""
    return int(_of(parsed).peak)


def _of(node: Node) -> _Growth:
    children: Sequence[Any] = node["children"]
    match node["type"]:
        case "slice":  # its children are numbers
            return _INPUT
        case "literal":
            size = 1 + len(str(node["value"])) / CHARACTERS_PER_INPUT
            return _Growth(size, size)
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
        case "multi_select_dict":
            keys = sum(len(child["value"]) for child in children) / CHARACTERS_PER_INPUT
            selected = _side_by_side(children)
            return _Growth(selected.result + keys, selected.peak + keys)
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
    """All work on the same. What begins with different fields of an object works on different parts of it."""
    fields: dict[str | None, list[_Growth]] = defaultdict(list)
    for node in nodes:
        fields[_first_field(node)].append(_of(node))
    shared = fields.pop(None, [])
    results = [sum(growth.result for growth in one) for one in fields.values()]
    peaks = [sum(growth.peak for growth in one) for one in fields.values()]
    result = sum(growth.result for growth in shared) + max(results, default=0)
    peak = sum(growth.peak for growth in shared) + max(peaks, default=0)
    return _Growth(max(result, 1), max(peak, 1))


def _first_field(node: Node) -> str | None:
    """The field of the input that is all that a node looks at, if it is one."""
    while node["type"] in ("subexpression", "index_expression", "pipe", "projection", "value_projection",
                           "filter_projection", "flatten", "key_val_pair"):  # fmt: skip
        node = node["children"][0]
    return node["value"] if node["type"] == "field" else None
