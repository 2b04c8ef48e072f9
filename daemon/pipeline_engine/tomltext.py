"""TOML text as JSON-like values, with the line of each key, which tomllib does not give."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

from pipeline_engine.errors import InvalidRequestError, Problem

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY_PART = re.compile(r"""[ \t]*("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*""")
_SCALAR = re.compile(
    r'"""(?:[^"\\]|\\[\s\S]|"(?!""))*"{3,5}'
    r"|'''(?:[^']|'(?!''))*'{3,5}"
    r"""|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[^,\]}#\n]+"""
)
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def read_toml(text: str, *, name: str) -> tuple[dict[str, object], dict[str, int]]:
    """The top table, and the line of each path. Raises InvalidRequestError with the line of a syntax error."""
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise InvalidRequestError([_syntax_problem(str(exc), text)], source=name) from exc
    except (RecursionError, ValueError) as exc:
        words = "nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise InvalidRequestError([Problem("", f"cannot be read: {words}")], source=name) from exc
    return value, _Scanner(text).scan()


def _syntax_problem(words: str, text: str) -> Problem:
    place = _PLACE.search(words)
    if place is None:
        return Problem("", f"not valid TOML: {words}")
    message = f"not valid TOML: {words[: place.start()]}"
    if place[1] is None:
        return Problem("", f"{message} at the end of the file", text.count("\n") + 1)
    return Problem("", f"{message} (column {place[2]})", int(place[1]))


class _Scanner:
    """Walks a text that tomllib has accepted, so it need not check anything."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line_starts = [match.end() for match in re.finditer("\n", text)]
        self._lengths: dict[str, int] = {}  # of the arrays of tables
        self._lines: dict[str, int] = {}

    def scan(self) -> dict[str, int]:
        table = ""
        while self._skip_blank() < len(self._text):
            if self._text.startswith("[[", self._at):
                table = self._header(2)
            elif self._text[self._at] == "[":
                table = self._header(1)
            else:
                self._pair(table)
        return self._lines

    def _skip_blank(self) -> int:
        match = _BLANK.match(self._text, self._at)
        assert match is not None  # it matches the empty text too
        self._at = match.end()
        return self._at

    def _note(self, path: str) -> None:
        self._lines.setdefault(path, bisect_right(self._line_starts, self._at) + 1)

    def _key(self, path: str) -> tuple[str, str]:
        """Reads a dotted key under the path: where its last part belongs, and that part."""
        while True:
            match = _KEY_PART.match(self._text, self._at)
            assert match is not None  # a key stands here in every valid document
            part = match[1]
            if part[0] in "\"'":
                part = tomllib.loads(f"key = {part}")["key"]
            if self._text[match.end()] != ".":
                self._at = match.end()
                return path, part
            path = _join(path, part)
            self._note(path)
            self._at = match.end() + 1
            if path in self._lengths:
                path += f"[{self._lengths[path] - 1}]"

    def _header(self, brackets: int) -> str:
        self._at += brackets
        path = _join(*self._key(""))
        self._note(path)
        if brackets == 2:
            index = self._lengths.get(path, 0)
            self._lengths[path] = index + 1
            path += f"[{index}]"
            self._note(path)
        self._at += brackets
        return path

    def _pair(self, table: str) -> None:
        path = _join(*self._key(table))
        self._note(path)
        self._at += 1  # the equals sign
        self._value(path)

    def _value(self, path: str) -> None:
        self._skip_blank()
        opening = self._text[self._at]
        if opening == "[":
            self._at += 1
            index = 0
            while self._text[self._skip_blank()] != "]":
                self._note(f"{path}[{index}]")
                self._value(f"{path}[{index}]")
                index += 1
                self._skip_comma()
            self._at += 1
        elif opening == "{":
            self._at += 1
            while self._text[self._skip_blank()] != "}":
                self._pair(path)
                self._skip_comma()
            self._at += 1
        else:
            match = _SCALAR.match(self._text, self._at)
            assert match is not None  # a value stands here in every valid document
            self._at = match.end()

    def _skip_comma(self) -> None:
        if self._text[self._skip_blank()] == ",":
            self._at += 1


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
