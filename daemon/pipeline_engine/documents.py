"""Reading YAML, JSON and TOML text into JSON-like values, in such a way that nothing changes its meaning silently."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from pipeline_engine.errors import InvalidRequestError, Problem
from pipeline_engine.tomltext import read_toml
from pipeline_engine.yamltext import MAX_DEPTH, read_yaml

SUFFIXES = (".yaml", ".yml", ".json", ".toml")

_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+')
_SURROGATE = re.compile("[\ud800-\udfff]")
_PARENT = re.compile(r"(\.[^.\[]*|\[\d+\])$")


@dataclass(frozen=True, slots=True)
class Document:
    """A value of null, booleans, finite numbers, texts, lists and objects.

    `lines` maps a path (`steps[2].kind`) to its line, counted from 1, where it is known.
    """

    value: object
    lines: Mapping[str, int]

    def line_of(self, path: str) -> int | None:
        """The line of the path, or of the nearest thing around it whose line is known."""
        while path not in self.lines:
            shorter = _PARENT.sub("", path)
            if shorter == path:
                return None
            path = shorter
        return self.lines[path]

    def locate(self, problems: list[Problem]) -> list[Problem]:
        """The problems, each with its line where that is known."""
        return [
            problem if problem.line is not None else Problem(problem.path, problem.message, self.line_of(problem.path))
            for problem in problems
        ]


def parse_document(text: str | bytes, *, name: str) -> Document:
    """The text as the name's suffix says: .yaml, .yml, .json or .toml, in UTF-8, with or without a byte order mark.

    Raises InvalidRequestError, with the name as its source, for what is malformed or ambiguous.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix not in SUFFIXES:
        message = f"cannot tell what kind of file this is: its name should end in one of {', '.join(SUFFIXES)}"
        raise InvalidRequestError([Problem("", message)], source=name)
    decoded = _decode_utf8(text, name)
    if suffix in (".yaml", ".yml"):
        value, lines = read_yaml(decoded, name=name)
        return Document(value, lines)
    value, lines = _read_json(decoded, name) if suffix == ".json" else read_toml(decoded, name=name)
    document = Document(value, lines)
    problems = list(_not_json(value))
    if problems:
        raise InvalidRequestError(document.locate(problems), source=name)
    return document


def _decode_utf8(text: str | bytes, name: str) -> str:
    try:
        if isinstance(text, str):
            text.encode()
        else:
            text = text.decode()
    except UnicodeEncodeError as exc:
        problem = Problem("", f"not Unicode text: half of a surrogate pair at character {exc.start}")
        raise InvalidRequestError([problem], source=name) from exc
    except UnicodeDecodeError as exc:
        data: bytes = exc.object
        line = data.count(b"\n", 0, exc.start) + 1
        problem = Problem("", f"not UTF-8: byte 0x{data[exc.start]:02x} at offset {exc.start}", line)
        raise InvalidRequestError([problem], source=name) from exc
    return text.removeprefix("\ufeff")


def _not_json(value: object) -> Iterator[Problem]:
    """What the readers of JSON and TOML let pass, but JSON cannot say."""
    waiting: list[tuple[str, object, int]] = [("", value, 0)]
    while waiting:
        path, part, depth = waiting.pop()
        if depth >= MAX_DEPTH and isinstance(part, dict | list):
            yield Problem(path, f"nested deeper than {MAX_DEPTH} levels")
        elif isinstance(part, dict):
            for key in part:
                if _SURROGATE.search(key):
                    yield Problem(path, f"the key {key!r} holds half of a surrogate pair")
            children = [(f"{path}.{key}" if path else key, child, depth + 1) for key, child in part.items()]
            waiting += reversed(children)
        elif isinstance(part, list):
            waiting += reversed([(f"{path}[{index}]", child, depth + 1) for index, child in enumerate(part)])
        elif isinstance(part, float) and not math.isfinite(part):
            yield Problem(path, "is not a finite number; quote it if it is a text")
        elif isinstance(part, str) and _SURROGATE.search(part):
            yield Problem(path, "the text holds half of a surrogate pair")
        elif part is not None and not isinstance(part, str | bool | int | float):
            yield Problem(path, f"dates and times are not supported: quote it ({part})")


# --- JSON -------------------------------------------------------------------------------------------------------------


def _read_json(text: str, name: str) -> tuple[object, dict[str, int]]:
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as exc:
        problem = Problem("", f"not valid JSON: {exc.msg} (column {exc.colno})", exc.lineno)
        raise InvalidRequestError([problem], source=name) from exc
    except (RecursionError, ValueError) as exc:
        words = "nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise InvalidRequestError([Problem("", f"cannot be read: {words}")], source=name) from exc
    lines, problems = _scan_json(text)
    if problems:
        raise InvalidRequestError(problems, source=name)
    return value, lines


@dataclass(slots=True)
class _Container:
    """An object or a list that the scan is in."""

    path: str
    is_object: bool
    length: int = 0
    keys: set[str] = field(default_factory=set)
    key: str | None = None  # read, its value not yet

    def next_path(self) -> str:
        """The path of the value that comes now."""
        if not self.is_object:
            self.length += 1
            return f"{self.path}[{self.length - 1}]"
        key, self.key = self.key, None
        return f"{self.path}.{key}" if self.path else str(key)


def _scan_json(text: str) -> tuple[dict[str, int], list[Problem]]:
    """The line of each path, and the keys that stand twice, of a text that json has accepted."""
    line_starts = [match.end() for match in re.finditer("\n", text)]
    lines: dict[str, int] = {}
    problems: list[Problem] = []
    stack: list[_Container] = []
    for match in _JSON_TOKEN.finditer(text):
        word = match[0]
        if word in ",:":
            continue
        if word in "]}":
            stack.pop()
            continue
        line = bisect_right(line_starts, match.start()) + 1
        container = stack[-1] if stack else None
        if container is not None and container.is_object and container.key is None:
            container.key = key = json.loads(word)
            path = f"{container.path}.{key}" if container.path else key
            if key in container.keys:
                problems.append(Problem(path, f"the key {key!r} stands here twice", line))
            container.keys.add(key)
        else:
            path = container.next_path() if container is not None else ""
            if word in "[{":
                stack.append(_Container(path, word == "{"))
        if path:
            lines.setdefault(path, line)
    return lines, problems
