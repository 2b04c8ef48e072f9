"""What can be said about a template's source without rendering it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

#: MiniJinja's parser recurses over chains like `not not …`, `1+1+…`; far beyond this it would overrun the stack.
MAX_OPERATORS = 1000  # in one tag
MAX_BRANCHES = 1000  # elif in one template

#: How many times what it is given a template may build into values of its own, and still count as harmless.
MAX_GROWTH = 1000

_TAG_START = re.compile(r"\{\{|\{%|\{#")
_RAW = re.compile(r"[-+]?\s*raw\s*[-+]?%\}")
_END_RAW = re.compile(r"\{%[-+]?\s*endraw\s*[-+]?%\}")
_TOKEN = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|(?P<name>[^\W\d]\w*)|(?P<number>\d[\d_]*(?:\.\d+)?)"""
    r"""|(?P<operator>\*\*|//|[=!<>]=|\S)""",
    re.DOTALL,
)
_MAPPING_METHODS = frozenset({"items", "keys", "values", "get"})
_OTHER_TEMPLATES = frozenset({"include", "import", "extends", "from"})
_LENIENT = frozenset({"default", "d", "none", "None", "defined", "undefined"})
_ASSIGNING = frozenset({"set", "with", "for"})
_REPEATING = frozenset({"macro", "call", "recursive"})
_WORDS = frozenset({"in", "is", "not", "and", "or", "if", "else", "true", "false", "none", "True", "False", "None"})
#: Operators and filters whose value is a text, a number or a part of what they are given.
_PLAIN_OPERATORS = frozenset({".", ",", "~", "|", "-", "/", "//", "%", "==", "!=", "<", ">", "<=", ">=", ")", "]"})
_PLAIN_FILTERS = frozenset(
    {"abs", "capitalize", "d", "default", "first", "float", "int", "join", "last", "length", "lower", "replace"}
    | {"round", "string", "title", "tojson", "trim", "truncate", "upper", "wordcount"}
)


@dataclass(frozen=True, slots=True)
class Token:
    kind: str  # string, name, number or operator
    text: str
    line: int
    start: int  # its place in the source


Tag = list[Token]


def template_tags(source: str) -> list[Tag]:
    """The tokens of each {{ … }} and {% … %}; comments and raw blocks have none."""
    tags: list[Tag] = []
    lines = _LineCounter(source)
    position = 0
    while start := _TAG_START.search(source, position):
        position = start.end()
        if start.group() == "{#":
            end = source.find("#}", position)
            position = len(source) if end < 0 else end + 2
        elif start.group() == "{%" and (raw := _RAW.match(source, position)):
            end_raw = _END_RAW.search(source, raw.end())
            position = end_raw.end() if end_raw else len(source)
        else:
            tag, position = _tag(source, position, "}}" if start.group() == "{{" else "%}", lines)
            tags.append(tag)
    return tags


def expression_tag(source: str) -> Tag:
    """The tokens of an expression without braces."""
    return _tag(source, 0, None, _LineCounter(source))[0]


def _tag(source: str, position: int, end: str | None, lines: _LineCounter) -> tuple[Tag, int]:
    tag: Tag = []
    depth = 0
    while match := _TOKEN.search(source, position):
        if end is not None and depth == 0 and source.startswith(end, match.start()):
            return tag, match.start() + 2
        position = match.end()
        text = match.group()
        depth += (text == "{") - (text == "}")
        tag.append(Token(match.lastgroup or "", text, lines.at(match.start()), match.start()))
    return tag, len(source)


class _LineCounter:
    """Turns growing offsets into line numbers, in one pass over the text."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._offset = 0
        self._line = 1

    def at(self, offset: int) -> int:
        self._line += self._source.count("\n", self._offset, offset)
        self._offset = offset
        return self._line


def refused(tags: Sequence[Tag]) -> str | None:
    """Why these tags must not even be compiled: they could end the process, or None."""
    branches = 0
    for tag in tags:
        operators = sum(1 for token in tag if _is_operator(token))
        if operators > MAX_OPERATORS:
            return f"line {tag[0].line}: more than {MAX_OPERATORS} operators in one tag"
        if tag and tag[0].text == "elif":
            branches += 1
        for token, dot, name in zip(tag[2:], tag[1:], tag, strict=False):
            # A width such as {:>99999999999} makes the library's format() allocate it all, outside the fuel.
            if (name.text, dot.text, token.text) == (".", "format", "("):
                return f"line {token.line}: the method format() is not available; use the filter format"
    return f"more than {MAX_BRANCHES} elif" if branches > MAX_BRANCHES else None


def _is_operator(token: Token) -> bool:
    if token.kind == "name":
        return token.text in ("not", "and", "or", "in", "is", "if", "else")
    return token.kind == "operator" and token.text not in (",", ":", ")", "]", "}")


def can_snowball(tags: Sequence[Tag]) -> bool:
    """Whether values that are built out of one another could grow, or nest, beyond what fuel measures.

    `{% set s = s + s %}` costs next to nothing, and thirty of them make a list of a billion.
    """
    names = {token.text for tag in tags for token in tag if token.kind == "name"}
    if names & _REPEATING:
        return True
    growth = 1
    for tag in tags:
        if tag and tag[0].text in _ASSIGNING and not _is_plain(assigned := _assigned(tag)):
            if [token.text for token in assigned[:2]] == ["namespace", "("] and tag[2].text == "=":
                continue  # where values can be kept, not yet a value
            growth *= max(1, sum(1 for _ in _variables(assigned)))
            if growth > MAX_GROWTH or "namespace" in names:
                return True
    return False


def _assigned(tag: Tag) -> Tag:
    """What comes after the `=` or the `in`."""
    sign = "in" if tag[0].text == "for" else "="
    return next((tag[index + 1 :] for index, token in enumerate(tag) if token.text == sign), [])


def _is_plain(expression: Tag) -> bool:
    """Whether the value cannot be larger than what it is made of, whatever that is."""
    edge = Token("operator", "", 0, 0)
    for before, token, after in zip([edge, *expression], expression, [*expression[1:], edge], strict=False):
        if token.kind == "operator" and token.text not in _PLAIN_OPERATORS:
            is_sum = token.text == "+" and "number" in (before.kind, after.kind)
            is_subscript = token.text == "[" and (before.kind == "name" or before.text in (")", "]"))
            is_call = token.text == "(" and before.text in _PLAIN_FILTERS
            if not (is_sum or is_subscript or is_call):
                return False
        if before.text == "|" and token.text not in _PLAIN_FILTERS:
            return False
    return True


def _variables(expression: Tag) -> Iterator[str]:
    for before, token in pairwise([Token("operator", "", 0, 0), *expression]):
        if token.kind == "name" and token.text not in _WORDS and before.text not in (".", "|"):
            yield token.text


def without_slices(source: str, tags: Sequence[Tag]) -> str:
    """The source with each `x[a:b]` as `x[[a,b]]`, which uses the same variables.

    MiniJinja does not look for variables in what is sliced, so its search for undeclared ones needs this form.
    """
    parts: list[str] = []
    position = 0
    for start, replacement in sorted(_slice_edits(tags)):
        parts += [source[position:start], replacement]
        position = start + 1
    return "".join([*parts, source[position:]])


def _slice_edits(tags: Sequence[Tag]) -> Iterator[tuple[int, str]]:
    for tag in tags:
        brackets: list[Token] = []
        slices: set[int] = set()  # where the brackets stand that turned out to be slices
        for before, token in pairwise([*tag[:1], *tag]):
            if token.kind != "operator":
                continue
            if token.text in "([{":
                brackets.append(token)
            elif token.text == ":" and brackets and brackets[-1].text == "[":
                if brackets[-1].start not in slices:
                    slices.add(brackets[-1].start)
                    yield brackets[-1].start, "[["
                yield token.start, "0," if before.text in "[:" else ","
            elif token.text in ")]}" and brackets and brackets.pop().start in slices:
                yield token.start, "0]]" if before.text == ":" else "]]"


def tolerates_undefined(tags: Sequence[Tag]) -> bool:
    """Whether the source speaks of defaults or none, so that a None in a filter need not be a mistake."""
    return any(token.kind == "name" and token.text in _LENIENT for tag in tags for token in tag)


def line_of(tags: Sequence[Tag], name: str) -> int:
    """The line where a variable is first used; 1 if it cannot be found."""
    for tag in tags:
        for index, token in enumerate(tag):
            if token.kind == "name" and token.text == name and (index == 0 or tag[index - 1].text != "."):
                return token.line
    return 1


def line_of_attribute(tags: Sequence[Tag], name: str) -> int:
    """The line where `.name` is first used; 1 if it cannot be found."""
    for tag in tags:
        for dot, token in pairwise(tag):
            if dot.text == "." and token.text == name:
                return token.line
    return 1


def previous_problems(tags: Sequence[Tag], steps: Collection[str]) -> Iterator[tuple[int, str]]:
    """Each `previous.X`, `previous["X"]` and `previous.get("X")` that names none of the steps, with its line."""
    for line, step in keys_read(tags, "previous"):
        if step is not None and step not in steps:
            yield line, f"previous names {step!r}, which is not a step that this one depends on"


def keys_read(tags: Sequence[Tag], name: str) -> Iterator[tuple[int, str | None]]:
    """The line and the key of each use of an object; None where it is used otherwise, or the key is not written out."""
    for tag in tags:
        for index, token in enumerate(tag):
            if token.kind == "name" and token.text == name and not (index and tag[index - 1].text == "."):
                yield token.line, _key_named(tag[index + 1 : index + 5])


def _key_named(after: Tag) -> str | None:
    texts = [token.text for token in after]
    if texts[:1] == ["["] and texts[2:3] == ["]"] and after[1].kind == "string":
        return texts[1][1:-1]
    if texts[:1] != ["."] or len(after) < 2 or after[1].kind not in ("name", "number"):
        return None
    if texts[2:3] == ["("] and texts[1] in _MAPPING_METHODS:
        return texts[3][1:-1] if texts[1] == "get" and len(after) == 4 and after[3].kind == "string" else None
    return texts[1]


def filters_used(tags: Sequence[Tag]) -> Iterator[tuple[int, str]]:
    """The names of the filters, with their lines."""
    for tag in tags:
        if len(tag) > 1 and tag[0].text == "filter" and tag[1].kind == "name":
            yield tag[1].line, tag[1].text
        for before, token in pairwise(tag):
            if before.text == "|" and token.kind == "name":
                yield token.line, token.text


def tests_used(tags: Sequence[Tag]) -> Iterator[tuple[int, str]]:
    """The names of the tests after `is` and `is not`, with their lines."""
    for tag in tags:
        for index, token in enumerate(tag):
            if token.kind == "name" and token.text == "is":
                rest = tag[index + 1 : index + 3]
                if rest and rest[0].text == "not":
                    rest = rest[1:]
                if rest and rest[0].kind == "name":
                    yield rest[0].line, rest[0].text


def other_templates_used(tags: Sequence[Tag]) -> Iterator[tuple[int, str]]:
    """The tags that would load another template, with their lines. An expression starts with none of these words."""
    for tag in tags:
        if len(tag) > 1 and tag[0].kind == "name" and tag[0].text in _OTHER_TEMPLATES and tag[1].text not in ".[|(":
            yield tag[0].line, tag[0].text
