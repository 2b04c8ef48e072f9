"""JSON in the answers of models: finding it, among thinking, code fences, prose and examples.

Nothing is guessed: an answer that was cut off, or that holds two different values, has none,
and a piece of a broken document is never its value. What is whole stays the value whatever prose, code or broken
examples follow, unless the answer is cut off there: then it was a draft. Only references of prose, `[1]`, give way to
others. All work is linear in the length of the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from pipeline_engine.jsontext import JsonTextError, dumps_compact, loads_strict
from pipeline_engine.steps.json_mending import loads_mended

_THINK = re.compile(r"<(?P<closing>/?)think(?:ing)?>", re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]*```+(?P<info>[^`\n]*)$|(?<=[}\]])[ \t]*```+[ \t\r]*$", re.MULTILINE)
_LANGUAGE = re.compile(r"[ \t]*([\w+#.-]*)")
_JSON_FENCES = frozenset({"json", "json5", "jsonc"})
_PLAIN_FENCES = frozenset({"", "text"})
_CODE_FENCES = frozenset({"javascript", "js", "python"})
_READ_FENCES = _JSON_FENCES | _PLAIN_FENCES | _CODE_FENCES

#: How an object or array begins; a brace or bracket in prose hardly ever does, and an interval, `[0, 1)`, is none.
#: Comments, keys without quotes, curly quotes and NaN are not mended, but what they stand in has no answer inside.
_START = re.compile(
    r"""\{\s*(?:["'“}]|//|/\*|\#|(?P<key>[\w$-]+\s*:))
    |\[(?!\s*-?[\d.]+\s*,\s*[^\s,"'(){}\[\]]+\s*\))
    \s*(?:["'“{\[\]\-\d]|//|/\*|\#|(?:true|false|null|True|False|None|NaN|Infinity)\b)""",
    re.VERBOSE,
)
#: A key without quotes is also how prose and code begin what they never close. Each is looked at to the end of the text.
_MAX_UNCLOSED_KEYS = 4
#: Behind each block of reasoning the JSON texts are looked for anew, maybe to the end of the text.
_MAX_RESTARTS = 4

_INTERVAL = re.compile(r"""\[[^,"'{}\[\]\n]+,[^,"'{}\[\]\n]+\)""")
_REFERENCE = re.compile(r"\[(?: |\s*\d{1,3}(?:\s*,\s*\d{1,3}){0,3}\s*)\]")  # or the box of a list of tasks
_SUBSCRIPT = re.compile(r"(?<=[A-Za-z0-9_])\[[^,{}\[\]]*\]")
_BESIDE_REFERENCES = "[]0123456789, \t\r"
_LINE_AROUND = 200  # characters on each side in which a reference must have prose on its line
_BRACKET = re.compile(r"""["'{}\[\]]""")
_DOUBLE_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_SINGLE_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*+'", re.DOTALL)
_CLOSES = {"}": "{", "]": "["}


class AnswerError(ValueError):
    """An answer without exactly one usable JSON value; says why, in words that help the model to do better."""


def parse_strict(text: str) -> Any:
    """The JSON value of an answer, as it stands there.

    Thinking, a code fence and prose around it are passed over; the value itself must be right. Raises AnswerError.
    """
    return _parse(text, loads_strict)


def parse_loose(text: str, *, is_cut: bool = False) -> tuple[bool, Any]:
    """Whether the answer has a JSON value, mended if need be, and that value (None if not).

    Of an answer that the token limit cut a mere number is no value: digits of it may be missing. It has none either
    where JSON or its code fence is never closed: the value that was meant is the one that is missing.
    """
    try:
        value = _parse(text, loads_mended, is_cut=is_cut)
    except AnswerError:
        return False, None
    if is_cut and isinstance(value, int | float) and not isinstance(value, bool):
        return False, None
    return True, value


def _parse(text: str, loads: Callable[[str], Any], *, is_cut: bool = False) -> Any:
    text = text.strip().removeprefix("\N{BYTE ORDER MARK}").strip()
    if not text:
        raise AnswerError("the answer is empty")
    # First the whole: what looks like a fence or a tag may stand inside a JSON text.
    try:
        return loads(text)
    except JsonTextError as exc:
        reason = f"the answer is not JSON: {exc}"
    parts = _outside_reasoning(text)
    try:
        found = _first_found(parts, loads, reason, is_cut=is_cut)
    except AnswerError:
        if text[0] in "{[":
            raise  # the tags and fences in it are content
        found = _behind_stray_quotes(text, parts, loads, is_cut=is_cut)
        if not found.values:
            raise
    return found.only_value()


def _first_found(parts: list[str], loads: Callable[[str], Any], reason: str, *, is_cut: bool) -> _Candidates:
    """The values of the first part that has any. Raises AnswerError, with the reason if no part tells a better one."""
    for part in parts:
        found = _candidates(part.strip(), loads, is_cut=is_cut)
        if found.values:
            return found
        if found.broken is not None:
            raise found.broken
        if found.error is not None:
            reason = f"the answer is not JSON: {found.error}"
    raise AnswerError(reason)


def _behind_stray_quotes(text: str, parts: list[str], loads: Callable[[str], Any], *, is_cut: bool) -> _Candidates:
    """The values where a quote that prose or reasoning leaves open does not hide tags and fences.

    Those behind the last closing tag, or else those that are the whole of a fence.
    """
    closings = [tag for tag in _THINK.finditer(text) if tag["closing"]]
    part = text[closings[-1].end() :] if closings else text
    opening = _THINK.search(part)
    part = (part[: opening.start()] if opening else part).strip()
    if part and part not in (other.strip() for other in parts):
        with suppress(AnswerError):
            found = _candidates(part, loads, is_cut=is_cut)
            if found.values:
                return found
    found = _Candidates(loads)
    fences = list(_FENCE.finditer(part))
    if is_cut or part[:1] in ("{", "[") or len(fences) == sum(1 for _ in _marks(_FENCE, part)):
        return found
    for block in _blocks(part, fences):
        if block.language is None:
            continue
        is_value = found.add(block.text, _Rank.CODE if block.language in _CODE_FENCES else _Rank.FENCED)
        if not is_value and not block.is_closed and block.language in _JSON_FENCES:
            return _Candidates(loads)  # the value that was meant is the one that is never closed
    return found


class _Rank(IntEnum):
    """Where a value stands; those of the first rank that has any count."""

    FENCED = 0  # the whole of a code fence
    CODE = 1  # the whole of a fence of Python or JavaScript with no value before it
    AROUND = 2
    WITHIN = 3  # among something else in a code fence, or a later one of code: examples are there
    REFERENCE = 4


class _Candidates:
    """The different values among pieces of text, two at most of each rank, and why the last bad piece was none."""

    def __init__(self, loads: Callable[[str], Any]) -> None:
        self._loads = loads
        self._ranks: dict[_Rank, dict[str, Any]] = {rank: {} for rank in _Rank}
        self._doubtful: set[tuple[_Rank, str]] = set()
        self._is_object_missed = False
        self.error: ValueError | None = None
        self.broken: AnswerError | None = None

    @property
    def values(self) -> dict[str, Any]:
        for rank, values in self._ranks.items():
            if any((rank, key) not in self._doubtful for key in values):
                return values
        return {}

    def has_any(self, rank: _Rank) -> bool:
        return bool(self._ranks[rank])

    def only_value(self) -> Any:
        if len(self.values) > 1:
            raise AnswerError("the answer has more than one JSON value; exactly one is wanted")
        return next(iter(self.values.values()))

    def add(self, piece: str, rank: _Rank, *, is_doubtful: bool = False) -> bool:
        """Whether the piece as a whole is a value."""
        try:
            value = self._loads(piece.strip())
        except JsonTextError as exc:
            self.error = exc
            return False
        key, values = dumps_compact(value), self._ranks[rank]
        if key not in values and len(values) < 2:
            values[key] = value
            if is_doubtful:
                self._doubtful.add((rank, key))
        return True

    def add_piece(self, piece: str, rank: _Rank, *, is_first: bool = False) -> bool:
        """Add a piece that stands among something else; whether it is a value.

        Behind an object that was no JSON, a list without objects is most likely a reference, or belongs to what explains
        it: it is no value of its own. Keys without quotes are how prose and code begin, unless all begins with them.
        """
        is_doubtful = self._is_object_missed and "{" not in piece and rank is not _Rank.CODE
        if self.add(piece, rank, is_doubtful=is_doubtful):
            return True
        start = _START.match(piece)
        if piece.startswith("{") and start is not None and (is_first or not start["key"]):
            self._is_object_missed = True
        return False

    def miss(self, broken: AnswerError, *, is_draft_before: bool = False) -> None:
        """A broken document came. Where it is the last thing an answer says, what stood before it was a draft."""
        self.broken = broken
        self._is_object_missed = True
        if is_draft_before:
            for values in self._ranks.values():
                values.clear()


def _candidates(text: str, loads: Callable[[str], Any], *, is_cut: bool) -> _Candidates:
    """The values in the code fences of a text and around them.

    Raises AnswerError when the bracket that the text begins with is not closed rightly: all else stands inside it. So
    it does for any JSON, and for a fence of JSON, in a text that was cut.
    """
    found = _Candidates(loads)
    end = _end_of_first(text)
    if end:
        found.add_piece(text[:end], _rank_around(text, 0, end), is_first=True)
    rest = text[end:]
    for block in _blocks(rest, _marks(_FENCE, rest)):
        if is_cut and not block.is_closed and block.is_json:
            raise AnswerError("the JSON in the answer is cut off: its code fence is never closed")
        if block.language is not None:
            _add_fenced(found, block, is_cut=is_cut)
            continue
        try:
            for start, end in _extents(block.text, is_cut=is_cut):
                found.add_piece(block.text[start:end], _rank_around(block.text, start, end))
        except AnswerError as exc:
            if is_cut:
                raise
            found.miss(exc)
    return found


def _add_fenced(found: _Candidates, block: _Block, *, is_cut: bool) -> None:
    """Add the value that a code fence is, or else the values in it, none if it is JSON and broken.

    Raises AnswerError when something in it is never closed, in a text that was cut.
    """
    text = block.text.strip()
    if block.language in _CODE_FENCES:
        found.add_piece(text, _Rank.WITHIN if found.has_any(_Rank.AROUND) else _Rank.CODE)
        return
    if found.add(text, _Rank.FENCED):
        return
    is_draft_before = is_cut or (not block.is_closed and block.language in _JSON_FENCES)
    try:
        end = _end_of_first(text)
        pieces = [text[start:stop] for start, stop in _extents(text, end, is_cut=is_cut)]
    except AnswerError as exc:
        if is_cut:
            raise
        if block.is_json:
            found.miss(exc, is_draft_before=is_draft_before)
        else:
            found.error = exc
        return
    if end and not found.add_piece(text[:end], _Rank.WITHIN, is_first=True) and block.is_json:
        found.miss(AnswerError(f"the answer is not JSON: {found.error}"), is_draft_before=is_draft_before)
        return
    for piece in pieces:
        found.add_piece(piece, _Rank.WITHIN)


def _rank_around(text: str, start: int, end: int) -> _Rank:
    """The rank of a piece outside of fences.

    A list of a few small numbers in a line of prose is a reference, and so is one thing in brackets behind a name.
    """
    if _SUBSCRIPT.fullmatch(text, start, end):
        return _Rank.REFERENCE
    if not _REFERENCE.fullmatch(text, start, end):
        return _Rank.AROUND
    before = text[max(0, start - _LINE_AROUND) : start].rpartition("\n")[2].rstrip(_BESIDE_REFERENCES)
    after = text[end : end + _LINE_AROUND].partition("\n")[0].lstrip(_BESIDE_REFERENCES)
    is_in_prose = any(beside and beside not in "{}" for beside in (before[-1:], after[:1]))
    return _Rank.REFERENCE if is_in_prose else _Rank.AROUND


def _outside_reasoning(text: str) -> list[str]:
    """The parts of the text that are no reasoning, the last one first: it is the answer, unless it has no value."""
    parts: list[str] = []
    start = 0
    is_reasoning = False
    restarts = 0
    contents = _Contents(text)
    for tag in _THINK.finditer(text):
        if not is_reasoning and restarts <= _MAX_RESTARTS and tag.start() in contents:
            continue
        if not tag["closing"]:
            if not is_reasoning:
                parts.append(text[start : tag.start()])
            is_reasoning = True
            continue
        if not is_reasoning:
            parts.clear()  # models leave the opening tag out, so whatever precedes a closing one is reasoning
        elif (restarts := restarts + 1) <= _MAX_RESTARTS:
            contents = _Contents(text, tag.end())  # reasoning leaves quotes open; they must not reach into the answer
        is_reasoning = False
        start = tag.end()
    if not is_reasoning:  # else the block never ends: all of it is reasoning
        parts.append(text[start:])
    return parts[::-1]


@dataclass(frozen=True, slots=True)
class _Block:
    """What a code fence holds, or, without a language, what stands between two of them."""

    text: str
    language: str | None
    is_closed: bool

    @property
    def is_json(self) -> bool:
        """Whether it can only be meant as JSON: by its language or its beginning."""
        if self.language is None:
            return False
        if self.language in _JSON_FENCES:
            return True
        start = _START.match(self.text.lstrip())
        return start is not None and not start["key"]


def _blocks(text: str, fences: Iterable[re.Match[str]]) -> Iterator[_Block]:
    """The code fences that may hold JSON and what stands around all fences, in their order; `fences` are their ends."""
    language: str | None = None
    start = 0
    for fence in fences:
        info = fence["info"]
        if info is None and language is None:
            continue  # only a block ends on the line of its value
        # Within a block, only a language right behind the fence begins another one: the block was never closed.
        is_end = language is not None and (not info or info[0].isspace())
        if language is None or language in _READ_FENCES:
            yield _Block(text[start : fence.start()], language, is_closed=is_end)
        start = fence.end() if info is None else fence.start("info")
        if is_end:
            language = None
            continue
        named = _LANGUAGE.match(text, start)
        assert named is not None
        start = named.end()
        language = named[1].lower()
    if language is None or language in _READ_FENCES:
        yield _Block(text[start:], language, is_closed=False)


def _marks(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """The matches of the pattern in a text, without those inside of JSON texts: there they are content."""
    contents = _Contents(text)
    return (match for match in pattern.finditer(text) if match.start() not in contents)


class _Contents:
    """The offsets inside of the JSON texts from `position` on, to be asked for in rising order."""

    def __init__(self, text: str, position: int = 0) -> None:
        self._quoted = _quoted(text, position)
        self._nothing = (len(text), len(text) + 1)
        self._begin, self._end = 0, 0

    def __contains__(self, offset: int) -> bool:
        while self._end <= offset:
            self._begin, self._end = next(self._quoted, self._nothing)
        return self._begin <= offset


def _quoted(text: str, position: int) -> Iterator[tuple[int, int]]:
    """Where the JSON texts in `spans` begin and end, from `position` on; none behind a piece that is not closed."""
    with suppress(AnswerError):
        for start, stop in _extents(text, position):
            for character, begin, end in _tokens(text, start):
                if begin >= stop:
                    break
                if character in "\"'":
                    yield begin, end


def spans(text: str) -> Iterator[str]:
    """The outermost pieces of a text that begin like JSON, up to their closing brackets; they never overlap.

    Raises AnswerError when one is not closed rightly: what stands inside it is no answer of its own. Only one that
    begins with a key without quotes may be prose, and is passed over then.
    """
    for start, end in _extents(text):
        yield text[start:end]


def _extents(text: str, position: int = 0, *, is_cut: bool = False) -> Iterator[tuple[int, int]]:
    """Where the pieces of `spans` begin and end, from `position` on. Of a text that was cut each must be closed."""
    unclosed = 0
    while start := _START.search(text, position):
        try:
            position = _closing(text, start.start())
        except AnswerError:
            unclosed += 1
            if is_cut or not start["key"] or unclosed > _MAX_UNCLOSED_KEYS:
                raise
            position = start.start("key")
            continue
        yield start.start(), position


def _end_of_first(text: str) -> int:
    """The offset behind the bracket that closes the one which the text begins with, 0 if it begins with none.

    An interval, `[0, n)`, is prose.
    """
    return _closing(text, 0) if text[:1] in ("{", "[") and not _INTERVAL.match(text) else 0


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
