from __future__ import annotations

import itertools
from typing import Any

import pytest

from pipeline_engine.errors import ErrorCode, StepError
from pipeline_engine.models import Split, SplitBy
from pipeline_engine.steps.sharding import Piece, split_source


def texts(source: str, by: SplitBy, **settings: Any) -> list[str]:
    return [piece.text for piece in split_source(Split(by=by, **settings), source)]


def values(source: str, by: SplitBy, **settings: Any) -> list[Any]:
    return [piece.json for piece in split_source(Split(by=by, **settings), source)]


@pytest.mark.parametrize(
    ("source", "settings", "expected"),
    [
        ("a\nb\nc\nd\ne", {"size": 2}, ["a\nb", "c\nd", "e"]),
        ("a\nb\n", {}, ["a", "b"]),
        ("a\r\n\nb", {}, ["a\r", "", "b"]),
        ("a\nb\nc\nd\ne", {"size": 3, "overlap": 1}, ["a\nb\nc", "c\nd\ne"]),
        ("a\nb\nc\nd", {"size": 3, "overlap": 2}, ["a\nb\nc", "b\nc\nd"]),
        ("a\nb\nc", {"size": 3, "overlap": 1}, ["a\nb\nc"]),
        ("a\nb\nc\nd", {"size": 3, "overlap": 1}, ["a\nb\nc", "c\nd"]),
        ("", {}, []),
    ],
)
def test_lines(source: str, settings: dict[str, int], expected: list[str]) -> None:
    assert texts(source, SplitBy.LINES, **settings) == expected


@pytest.mark.parametrize(
    ("source", "settings", "expected"),
    [
        ("abcdefghij", {"size": 4, "overlap": 1}, ["abcd", "defg", "ghij"]),
        ("abcdefg", {"size": 4, "overlap": 1}, ["abcd", "defg"]),
        ("abcde", {"size": 4, "overlap": 1}, ["abcd", "de"]),
        ("a" * 4000 + "b", {"overlap": 1}, ["a" * 4000, "ab"]),
        ("ü" * 4001, {}, ["ü" * 4000, "ü"]),
        ("", {}, []),
    ],
)
def test_chars_are_code_points_and_no_piece_lies_in_the_one_before(
    source: str, settings: dict[str, int], expected: list[str]
) -> None:
    assert texts(source, SplitBy.CHARS, **settings) == expected


@pytest.mark.parametrize(
    ("source", "pattern", "expected"),
    [
        ("one--two--three", "--", ["one", "two", "three"]),
        ("--a----b--", "--", ["a", "b"]),
        ("a1b22c", r"(\d)+", ["a", "b", "c"]),
        ("", "--", []),
    ],
)
def test_a_pattern_separates_and_empty_pieces_are_left_out(source: str, pattern: str, expected: list[str]) -> None:
    assert texts(source, SplitBy.REGEX, pattern=pattern) == expected


def test_json_lines_are_pieces_with_their_value() -> None:
    pieces = list(split_source(Split(by=SplitBy.JSONL), '{"a": 1}\n\nnull\n'))
    assert pieces == [Piece('{"a": 1}', {"a": 1}, has_json=True), Piece("null", None, has_json=True)]


def test_array_elements_are_pieces_and_texts_stand_as_they_are() -> None:
    pieces = list(split_source(Split(by=SplitBy.JSON_ARRAY), '["a b", {"b": [1]}]'))
    assert pieces == [Piece("a b", "a b", has_json=True), Piece('{"b":[1]}', {"b": [1]}, has_json=True)]


def test_csv_rows_are_pieces() -> None:
    assert texts("a,b\n1,2\n3,4\n", SplitBy.CSV) == ['{"a":"1","b":"2"}', '{"a":"3","b":"4"}']


@pytest.mark.parametrize(
    ("by", "source"), [(SplitBy.JSONL, "1\n2\n3\n"), (SplitBy.JSON_ARRAY, "[1,2,3]"), (SplitBy.CSV, "a\n1\n2\n3")]
)
def test_size_groups_elements(by: SplitBy, source: str) -> None:
    grouped = values(source, by, size=2)
    assert [len(group) for group in grouped] == [2, 1]
    assert [len(group) for group in values(source, by, size=2, overlap=1)] == [2, 2]
    assert texts("[1,2,3]", SplitBy.JSON_ARRAY, size=2) == ["[1,2]", "[3]"]


@pytest.mark.parametrize(
    ("by", "source", "words"),
    [
        (SplitBy.JSONL, "1\nNaN", "line 2"),
        (SplitBy.JSON_ARRAY, "[1,\n NaN]", "line 2"),
        (SplitBy.JSON_ARRAY, '{"a":1}', "not an array"),
        (SplitBy.CSV, "a,b\n1\n", "line 2"),
    ],
)
def test_what_cannot_be_split_is_named_with_its_line(by: SplitBy, source: str, words: str) -> None:
    with pytest.raises(StepError, match=words) as caught:
        list(split_source(Split(by=by), source))
    assert caught.value.code is ErrorCode.OUTPUT_INVALID


def test_pieces_are_made_when_they_are_asked_for() -> None:
    source = "1\n" * 1000 + "broken"
    pieces = list(itertools.islice(split_source(Split(by=SplitBy.JSONL), source), 3))
    assert [piece.json for piece in pieces] == [1, 1, 1]
