"""JSON in the answers of models: finding it and, where that is allowed, mending it.

Only what models are known to get wrong is mended: trailing commas, single quotes, Python's True, False and None, raw
line breaks inside texts. Nothing is guessed: an answer that was cut off, or that holds two different values, has none.
Only lists of plain values give way to others, since prose has its references in brackets. All work is linear in the
length of the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from pipeline_engine.jsontext import JsonTextError, dumps_compact, loads_strict

_THINK = re.compile(r"<(?P<closing>/?)think(?:ing)?>", re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]*```+(?P<info>[^`\n]*)$", re.MULTILINE)
_LANGUAGE = re.compile(r"[ \t]*([\w+#.-]*)")
_JSON_FENCES = frozenset({"", "json", "json5", "jsonc", "javascript", "js", "python", "text"})

#: How an object or array begins; a brace or bracket in prose hardly ever does. A key without quotes is not mended, but
#: what such an object holds is no answer of its own.
_START = re.compile(
    r"""\{\s*(?:["'}]|[A-Za-z_$][\w$]*\s*:)|\[\s*(?:["'{\[\]\-\d]|(?:true|false|null|True|False|None)\b)"""
)
_BRACKET = re.compile(r"""["'{}\[\]]""")
_DOUBLE_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_SINGLE_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*+'", re.DOTALL)
_CLOSES = {"}": "{", "]": "["}

_MENDED = re.compile(
    r"""(?P<double>"(?:[^"\\]|\\.)*+")|(?P<single>'(?:[^'\\]|\\.)*+')|(?P<comma>,(?=\s*+[}\]]))"""
    r"""|\b(?P<literal>True|False|None)\b|(?P<stray>["'\\])""",
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


def parse_loose(text: str, *, is_cut: bool = False) -> tuple[bool, Any]:
    """Whether the answer has a JSON value, mended if need be, and that value (None if not).

    Of an answer that the token limit cut a mere number is no value: digits of it may be missing.
    """
    try:
        value = _parse(text, _loads_mended)
    except AnswerError:
        return False, None
    if is_cut and isinstance(value, int | float) and not isinstance(value, bool):
        return False, None
    return True, value


def _parse(text: str, loads: Callable[[str], Any]) -> Any:
    text = text.strip().removeprefix("\N{BYTE ORDER MARK}").strip()
    if not text:
        raise AnswerError("the answer is empty")
    # First the whole: what looks like a fence or a tag may stand inside a JSON text.
    try:
        return loads(text)
    except JsonTextError as exc:
        reason = f"the answer is not JSON: {exc}"
    for part in _outside_reasoning(text):
        found = _candidates(part, loads)
        if found.values:
            return found.only_value()
        if found.error is not None:
            reason = f"the answer is not JSON: {found.error}"
    raise AnswerError(reason)


class _Candidates:
    """The different values among pieces of text, two at most of each sort, and why the last bad piece was none."""

    def __init__(self, loads: Callable[[str], Any]) -> None:
        self._loads = loads
        self._values: dict[str, Any] = {}
        self._plain_lists: dict[str, Any] = {}
        self.error: ValueError | None = None

    @property
    def values(self) -> dict[str, Any]:
        """Lists of plain values count only where there is nothing else."""
        return self._values or self._plain_lists

    def only_value(self) -> Any:
        if len(self.values) > 1:
            raise AnswerError("the answer has more than one JSON value; exactly one is wanted")
        return next(iter(self.values.values()))

    def add(self, piece: str) -> bool:
        """Whether the piece as a whole is a value."""
        try:
            value = self._loads(piece.strip())
        except JsonTextError as exc:
            self.error = exc
            return False
        values = self._plain_lists if _is_plain_list(value) else self._values
        if len(values) < 2:
            values[dumps_compact(value)] = value
        return True


def _is_plain_list(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(part, dict | list) for part in value)


def _candidates(text: str, loads: Callable[[str], Any]) -> _Candidates:
    """The values in the code fences of a text, or, where they have none, in what stands around them."""
    blocks, rest = _fences(text)
    found = _Candidates(loads)
    for block in blocks:
        if not found.add(block):
            try:
                pieces = list(spans(block))
            except AnswerError as exc:
                found.error = exc
                continue
            for piece in pieces:
                found.add(piece)
    if not found.values:
        for piece in spans("\n".join(rest)):
            found.add(piece)
    return found


def _outside_reasoning(text: str) -> list[str]:
    """The parts of the text that are no reasoning, the last one first: it is the answer, unless it has no value."""
    parts: list[str] = []
    start = 0
    is_reasoning = False
    for tag in _marks(_THINK, text):
        if not tag["closing"]:
            if not is_reasoning:
                parts.append(text[start : tag.start()])
            is_reasoning = True
            continue
        if not is_reasoning:
            parts.clear()  # models leave the opening tag out, so whatever precedes a closing one is reasoning
        is_reasoning = False
        start = tag.end()
    if not is_reasoning:  # else the block never ends: all of it is reasoning
        parts.append(text[start:])
    return parts[::-1]


def _fences(text: str) -> tuple[list[str], list[str]]:
    """The contents of the code fences that may hold JSON, and what stands around all fences."""
    blocks: list[str] = []
    rest: list[str] = []
    current: list[str] | None = rest  # where the text since `start` goes
    start = 0
    for fence in _marks(_FENCE, text):
        if current is not None:
            current.append(text[start : fence.start()])
        start = fence.start("info")
        # Within a block, only a language right behind the fence begins another one: the block was never closed.
        if current is not rest and (not fence["info"] or fence["info"][0].isspace()):
            current = rest
            continue
        language = _LANGUAGE.match(text, start)
        assert language is not None
        start = language.end()
        current = blocks if language[1].lower() in _JSON_FENCES else None
    if current is not None:
        current.append(text[start:])
    return blocks, rest


def _marks(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """The matches of the pattern in a text, without those inside of JSON texts: there they are content."""
    quoted = _quoted(text)
    nothing = (len(text), len(text) + 1)
    start, end = 0, 0
    for match in pattern.finditer(text):
        while end <= match.start():
            start, end = next(quoted, nothing)
        if match.start() < start:
            yield match


def _quoted(text: str) -> Iterator[tuple[int, int]]:
    """Where the JSON texts in `spans` begin and end; none behind a piece that is not closed."""
    position = 0
    with suppress(AnswerError):
        while start := _START.search(text, position):
            position = _closing(text, start.start())
            for character, begin, end in _tokens(text, start.start()):
                if begin >= position:
                    break
                if character in "\"'":
                    yield begin, end


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
    for character, _, end in _tokens(text, start):
        if character in "{[":
            open_brackets.append(character)
        elif character in "}]":
            if open_brackets.pop() != _CLOSES[character]:
                raise AnswerError("the JSON in the answer is broken: its brackets do not match")
            if not open_brackets:
                return end
    raise AnswerError("the JSON in the answer is cut off: something in it is never closed")


def _tokens(text: str, start: int) -> Iterator[tuple[str, int, int]]:
    """Each bracket and each JSON text from `start` on: its first character, where it begins and where it ends.

    They end before a text that is never closed.
    """
    position = start
    while match := _BRACKET.search(text, position):
        character = match.group()
        position = match.end()
        if character in "\"'":
            if character == "'" and not _value_may_start(text, match.start()):
                continue
            quoted = (_DOUBLE_QUOTED if character == '"' else _SINGLE_QUOTED).match(text, match.start())
            if quoted is None:
                return
            position = quoted.end()
        yield character, match.start(), position


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
        case "stray":
            # Looking on would try a text at each of the quotes that follow, and each time to the end.
            raise JsonTextError("a quote or a backslash stands outside of its texts, or a text is never closed")
        case _:
            return _LITERALS[token]


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match.group()):04x}"


def _requoted(match: re.Match[str]) -> str:
    return {"\\'": "'", '"': '\\"'}.get(match.group(), match.group())
