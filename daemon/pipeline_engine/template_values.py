"""What templates see of our data: read-only views that show keys and elements, and nothing of Python.

MiniJinja's binding hands Python objects to templates as they are, with their attributes and methods (`pop`, `clear`).
A view has dunder methods only, which the binding never offers to a template, and wraps what it gives out at the moment
it is asked for, so a context of any size costs nothing until a template looks at it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline_engine.errors import TemplateError
from pipeline_engine.jsontext import JsonTextError, dumps_compact

_INT64 = range(-(2**63), 2**63)
_SURROGATE = re.compile("[\ud800-\udfff]")


class ViewLog:
    """What happened in the views of one rendering.

    `missing` is the key that was looked up in vain, until another lookup succeeds: filters written in Python get None
    for an undefined value, and this tells the two apart. `failure` is an error that could not be raised from where it
    occurred.
    """

    __slots__ = ("failure", "missing")

    def __init__(self) -> None:
        self.missing: object = None
        self.failure: JsonTextError | None = None


class _View:
    __slots__ = ("_data", "_log")

    def __init__(self, data: Any, log: ViewLog) -> None:
        self._data = data
        self._log = log

    def __str__(self) -> str:
        try:
            return dumps_compact(self._data)
        except JsonTextError as exc:
            self._log.failure = exc  # the binding would print a placeholder for an exception raised here
            return ""

    def __len__(self) -> int:
        return len(self._data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _View) and bool(self._data == other._data)

    def __lt__(self, other: _View) -> bool:
        return bool(self._data < other._data)

    def __gt__(self, other: _View) -> bool:
        return bool(self._data > other._data)

    __hash__ = None  # type: ignore[assignment]  # equal by content, and the content may change between renderings


class ObjectView(_View):
    """A JSON object. `x.key` is the key or undefined; items(), keys(), values() and get() can be called."""

    __slots__ = ("_failed",)

    _failed: object

    def __getitem__(self, key: object) -> Any:
        try:
            value = self._data[key]
        except (KeyError, TypeError):
            # Next the binding looks for an attribute of that name; __getattr__ must not offer a method then.
            self._failed = key
            self._log.missing = key
            raise KeyError(key) from None
        self._log.missing = None
        return view(value, self._log)

    def __iter__(self) -> Iterator[str]:
        return (_clean(key) for key in self._data)

    def __getattr__(self, name: str) -> Any:
        if name == "_failed":
            self._failed = None
            return None
        if name not in _METHODS:
            raise AttributeError(name)
        if self._failed == name:
            self._failed = None
            raise AttributeError(name)
        return _METHODS[name].__get__(self)


def _items(self: ObjectView) -> tuple[tuple[str, Any], ...]:
    return tuple((_clean(key), view(value, self._log)) for key, value in self._data.items())


def _keys(self: ObjectView) -> tuple[str, ...]:
    return tuple(self)


def _values(self: ObjectView) -> tuple[Any, ...]:
    return tuple(view(value, self._log) for value in self._data.values())


def _get(self: ObjectView, key: object, default: object = None) -> Any:
    self._log.missing = None
    return view(self._data[key], self._log) if isinstance(key, str) and key in self._data else default


# Tuples become values of MiniJinja's own, where a list would be handed over with its methods.
_METHODS: dict[str, Any] = {"items": _items, "keys": _keys, "values": _values, "get": _get}


class ListView(_View):
    """A JSON array."""

    __slots__ = ()

    def __getitem__(self, index: object) -> Any:
        if not isinstance(index, int):
            self._log.missing = index
            raise IndexError(index)
        try:
            value = self._data[index]
        except IndexError:
            self._log.missing = index
            raise
        self._log.missing = None
        return view(value, self._log)

    def __iter__(self) -> Iterator[Any]:
        return (view(value, self._log) for value in self._data)


Sequence.register(ListView)  # how the binding knows a sequence; inheriting would bring index() and count() along


class BigNumberView(_View):
    """A whole number beyond 64 bits, which the binding would round: it prints exactly."""

    __slots__ = ()


def view(value: object, log: ViewLog) -> Any:
    """The value as a template may see it. Raises TemplateError for what is not JSON data."""
    kind = type(value)
    if kind is str:
        return _clean(value)  # type: ignore[arg-type]
    if kind is dict:
        return ObjectView(value, log)
    if kind is list:
        return ListView(value, log)
    if value is None or kind is bool or kind is float:
        return value
    if isinstance(value, int):
        return int(value) if value in _INT64 else BigNumberView(int(value), log)
    if isinstance(value, str):
        return _clean(str(value))
    if isinstance(value, float):
        return float(value)
    if isinstance(value, _View):
        return value
    if isinstance(value, Mapping):
        return ObjectView(value, log)
    if isinstance(value, list | tuple):
        return ListView(value, log)
    raise TemplateError(f"a value of the type {kind.__name__} is not JSON data")


def _clean(text: str) -> str:
    """The text without half surrogate pairs: the binding hands a text that has any over as a Python object."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
    return text


def unwrap(value: object) -> Any:
    """The plain data of a value that comes out of a template."""
    if isinstance(value, _View):
        return value._data  # noqa: SLF001  # a public name would be one for templates too
    if isinstance(value, dict):
        return {unwrap(key): unwrap(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [unwrap(part) for part in value]
    if isinstance(value, str) and type(value) is not str:
        return str.__str__(value)
    return value


def is_small(value: object, limit: int) -> bool:
    """Whether a value has at most `limit` parts and characters, without looking at more of it than that."""
    left = limit
    waiting: list[Any] = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, _View):
            part = unwrap(part)
        if isinstance(part, str | list | tuple | Mapping):
            left -= len(part)
            if left < 0:
                return False
            if isinstance(part, Mapping):
                waiting.extend(part.values())
            elif not isinstance(part, str):
                waiting.extend(part)
        left -= 1
        if left < 0:
            return False
    return True
