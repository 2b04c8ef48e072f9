"""Copies of JSON values, for whoever may change them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def own_copy(value: Any) -> Any:
    """The value with objects and lists of its own."""
    if isinstance(value, dict):
        return {key: own_copy(part) for key, part in value.items()}
    if isinstance(value, list):
        return [own_copy(part) for part in value]
    return value


class OwnObjects(list[dict[str, Any]]):
    """A list of copies of these objects, each made when it is looked at: of thousands, most callers want one or none.

    As long as `_shared` is there, an element that is the same object there has not been copied yet.
    """

    _shared: Sequence[dict[str, Any]] | None = None

    def __init__(self, shared: Sequence[dict[str, Any]]) -> None:
        super().__init__(shared)
        self._shared = shared

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            self._copy_all()
        found = super().__getitem__(place)
        if self._shared is not None and found is self._shared[place]:
            found = own_copy(found)
            super().__setitem__(place, found)
        return found

    def __radd__(self, other: list[Any]) -> list[Any]:
        return [*other, *self]

    def _copy_all(self) -> None:
        if (shared := self._shared) is not None:
            self._shared = None
            mine = [super(OwnObjects, self).__getitem__(place) for place in range(len(shared))]
            copies = [own_copy(one) if one is theirs else one for one, theirs in zip(mine, shared, strict=True)]
            super().__setitem__(slice(None), copies)


def _after_copying(name: str) -> Callable[..., Any]:
    method = getattr(list, name)

    def call(self: OwnObjects, *args: Any, **kwargs: Any) -> Any:
        self._copy_all()
        return method(self, *args, **kwargs)

    return call


# What else gives elements away, or moves them.
for _name in (
    *(
        "__add__",
        "__delitem__",
        "__iadd__",
        "__imul__",
        "__iter__",
        "__mul__",
        "__reversed__",
        "__rmul__",
        "__setitem__",
    ),
    *("append", "clear", "copy", "extend", "insert", "pop", "remove", "reverse", "sort"),
):
    setattr(OwnObjects, _name, _after_copying(_name))
