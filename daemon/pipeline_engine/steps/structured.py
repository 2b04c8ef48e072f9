"""JSON in the answers of models: finding it and, where that is allowed, mending it.

Only what models are known to get wrong is mended: trailing commas, single quotes, Python's True, False and None, raw
line breaks inside texts. Nothing is guessed: an answer that was cut off, or that holds two different values, has none.
All work is linear in the length of the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from pipeline_engine.jsontext import JsonTextError, dumps_compact, loads_strict

_THINK_END = re.compile(r"</think(?:ing)?>")
_THINK_START = re.compile(r"<think(?:ing)?>")
_FENCE = re.compile(r"^[ \t]*```([^\n`]*)\n(.*?)(?:^[ \t]*```[ \t]*\r?$|\Z)", re.MULTILINE | re.DOTALL)
_JSON_FENCES = frozenset({"", "json", "json5", "jsonc", "javascript", "js", "python", "text"})

#: How an object or array begins; a brace or bracket in prose hardly ever does.
_START = re.compile(r"""\{\s*["'}]|\[\s*(?:["'{\[\]\-\d]|(?:true|false|null|True|False|None)\b)""")
_BRACKET = re.compile(r"""["'{}\[\]]""")
_DOUBLE_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_SINGLE_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*+'", re.DOTALL)
_CLOSES = {"}": "{", "]": "["}

_MENDED = re.compile(
    r"""(?P<double>"(?:[^"\\]|\\.)*+")|(?P<single>'(?:[^'\\]|\\.)*+')|(?P<comma>,(?=\s*+[}\]]))"""
    r"""|\b(?P<literal>True|False|None)\b""",
    re.DOTALL,
)
_CONTROL = re.compile(r"[\x00-\x1f]")
_SINGLE_INNER = re.compile(r"""\\'|"|\\.""", re.DOTALL)
_LITERALS = {"True": "true", "False": "false", "None": "null"}


class AnswerError(ValueError):
    """An answer without exactly one usable JSON value; says why, in words that help the model to do better."""


def parse_strict(text: str) -> Any:
    """The JSON value of an answer, as it stands there.

    Thinking, a code fence and prose around it are passed over; the value itself must be right. Raises AnswerError.
    """
    return _parse(text, loads_strict)


def parse_loose(text: str) -> tuple[bool, Any]:
    """Whether the answer has a JSON value, mended if need be, and that value (None if not)."""
    try:
        return True, _parse(text, _loads_mended)
    except AnswerError:
        return False, None


def _parse(text: str, loads: Callable[[str], Any]) -> Any:
    text = text.strip().removeprefix("\N{BYTE ORDER MARK}").strip()
    if not text:
        raise AnswerError("the answer is empty")
    # First the whole: what looks like a fence or a tag may stand inside a JSON text.
    try:
        return loads(text)
    except JsonTextError as exc:
        reason = f"the answer is not JSON: {exc}"
    text = _without_thinking(text)
    fenced, rest = _fences(text)
    found = _Candidates(loads)
    for block in fenced:
        found.add(block)
    if not found.values:
        for span in spans(rest):
            found.add(span)
    if not found.values:
        raise AnswerError(f"the answer is not JSON: {found.error}" if found.error else reason)
    return next(iter(found.values.values()))


class _Candidates:
    """The different values among pieces of text, and why the last bad piece was none."""

    def __init__(self, loads: Callable[[str], Any]) -> None:
        self._loads = loads
        self.values: dict[str, Any] = {}
        self.error: JsonTextError | None = None

    def add(self, piece: str) -> None:
        try:
            value = self._loads(piece.strip())
        except JsonTextError as exc:
            self.error = exc
        else:
            self.values[dumps_compact(value)] = value
            if len(self.values) > 1:
                raise AnswerError("the answer has more than one JSON value; exactly one is wanted")


def _without_thinking(text: str) -> str:
    """What follows the reasoning. A block that never ends is all reasoning."""
    # Models leave the opening tag out, so whatever precedes the last closing one counts as reasoning.
    end = 0
    for closing in _THINK_END.finditer(text):
        end = closing.end()
    text = text[end:]
    start = _THINK_START.search(text)
    return text[: start.start()] if start else text


def _fences(text: str) -> tuple[list[str], str]:
    """The contents of code fences that may hold JSON, and the text without any fences."""
    blocks = [match.group(2) for match in _FENCE.finditer(text) if _language(match) in _JSON_FENCES]
    return blocks, _FENCE.sub("", text)


def _language(match: re.Match[str]) -> str:
    return match.group(1).strip().lower()


def spans(text: str) -> Iterator[str]:
    """The outermost pieces of a text that begin like JSON, up to their closing brackets; they never overlap.

    Raises AnswerError when one is not closed rightly: what stands inside it is no answer of its own.
    """
    position = 0
    while start := _START.search(text, position):
        position = _closing(text, start.start())
        yield text[start.start() : position]


def _closing(text: str, start: int) -> int:
    """The offset behind the bracket that closes the one at `start`."""
    open_brackets: list[str] = []
    position = start
    while match := _BRACKET.search(text, position):
        character = match.group()
        position = match.end()
        if character in "{[":
            open_brackets.append(character)
        elif character in "}]":
            if open_brackets.pop() != _CLOSES[character]:
                raise AnswerError("the JSON in the answer is broken: its brackets do not match")
            if not open_brackets:
                return position
        elif character == '"' or _value_may_start(text, match.start()):
            quoted = (_DOUBLE_QUOTED if character == '"' else _SINGLE_QUOTED).match(text, match.start())
            if quoted is None:
                break
            position = quoted.end()
    raise AnswerError("the JSON in the answer is cut off: something in it is never closed")


def _value_may_start(text: str, offset: int) -> bool:
    """Whether a single quote is the start of a text, and not an apostrophe: by what stands before it."""
    before = offset - 1
    while before >= 0 and text[before] in " \t\r\n":
        before -= 1
    return before >= 0 and text[before] in "{[,:"


def _loads_mended(text: str) -> Any:
    try:
        return loads_strict(text)
    except JsonTextError:
        if text[:1] not in ("{", "["):
            raise
        return loads_strict(_MENDED.sub(_mended, text))


def _mended(match: re.Match[str]) -> str:
    token = match.group()
    match match.lastgroup:
        case "double":
            return _CONTROL.sub(_escaped, token)
        case "single":
            return '"' + _CONTROL.sub(_escaped, _SINGLE_INNER.sub(_requoted, token[1:-1])) + '"'
        case "comma":
            return ""
        case _:
            return _LITERALS[token]


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match.group()):04x}"


def _requoted(match: re.Match[str]) -> str:
    return {"\\'": "'", '"': '\\"'}.get(match.group(), match.group())
