"""Copies that are made when they are looked at, and what they are copies of."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from pipeline_engine.steps.copies import OwnObjects, own_copy


def shared() -> list[dict[str, Any]]:
    return [{"label": name, "metadata": {"tags": [name]}} for name in "abc"]


def test_a_copy_shares_no_part() -> None:
    value = {"list": [1, {"x": None}], "text": "t"}
    mine = own_copy(value)
    assert mine == value
    mine["list"][1]["x"] = 2
    assert value == {"list": [1, {"x": None}], "text": "t"}


def sorted_in_place(mine: OwnObjects) -> list[Any]:
    mine.sort(key=lambda one: str(one["label"]))
    return [*mine]


def moved(mine: OwnObjects) -> list[Any]:
    mine.insert(0, {})
    return [*mine][1:]


WAYS: dict[str, Callable[[OwnObjects], list[Any]]] = {
    "index": lambda mine: [mine[0], mine[-1], mine[1]],
    "slice": lambda mine: mine[:],
    "for": list,
    "reversed": lambda mine: list(reversed(mine)),
    "sorted": lambda mine: sorted(mine, key=lambda one: str(one["label"])),
    "sort": sorted_in_place,
    "pop": lambda mine: [mine.pop(), mine.pop(0), mine.pop()],
    "copy": lambda mine: mine.copy(),
    "copy.copy": copy.copy,
    "plus": lambda mine: mine + [],  # noqa: RUF005 - that is what is tried
    "plus in front": lambda mine: [] + mine,  # noqa: RUF005 - that is what is tried
    "times": lambda mine: mine * 1,
    "unpacked": lambda mine: [*mine],
    "moved": moved,
}


@pytest.mark.parametrize("way", WAYS)
def test_whichever_way_an_element_is_had_it_is_a_copy(way: str) -> None:
    theirs = shared()
    mine = OwnObjects(theirs)
    found = WAYS[way](mine)
    assert sorted(one["label"] for one in found) == ["a", "b", "c"]
    for one in found:
        one["metadata"]["tags"].append("mine")
        one["label"] = "mine"
    assert theirs == shared()


def test_a_change_lasts() -> None:
    theirs = shared()
    mine = OwnObjects(theirs)
    mine[1]["label"] = "B"
    assert mine[1]["label"] == "B"
    assert [one["label"] for one in mine] == ["a", "B", "c"]
    mine[0] = {"label": "A"}
    assert json.loads(json.dumps(mine))[0] == {"label": "A"}
    assert theirs == shared()


def test_an_element_that_nobody_looks_at_is_not_copied() -> None:
    theirs = shared()
    mine = OwnObjects(theirs)
    assert mine[2] is mine[2] is not theirs[2]
    assert [one is other for one, other in zip(list.__iter__(mine), theirs, strict=True)] == [True, True, False]


def test_the_list_is_one_like_any_other() -> None:
    mine = OwnObjects(shared())
    assert isinstance(mine, list)
    assert mine == shared()
    assert len(mine) == 3
    assert shared()[1] in mine
    with pytest.raises(IndexError):
        mine[3]
    with pytest.raises(TypeError):
        mine["a"]
