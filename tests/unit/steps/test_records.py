from __future__ import annotations

import pytest

from pipeline_engine.errors import StepError
from pipeline_engine.steps.records import csv_rows, jsonl_values, logfmt_record, text_lines


def test_only_a_newline_ends_a_line() -> None:
    assert list(text_lines("a\r\n\nb\u2028c\x85d\n")) == ["a\r", "", "b\u2028c\x85d"]
    assert list(text_lines("")) == []


def test_json_lines_are_counted_as_they_stand() -> None:
    assert list(jsonl_values('\ufeff{"a":1}\r\n \n[2]')) == [('{"a":1}', {"a": 1}), ("[2]", [2])]
    with pytest.raises(StepError, match="line 3, column 2"):
        list(jsonl_values('{"a":1}\n\n{bad}\n'))


def test_csv_rows_are_objects_of_texts() -> None:
    assert list(csv_rows('\ufeffa,b\r\n1,"x\ny ""z"""\r\n\r\n3,\r\n')) == [
        {"a": "1", "b": 'x\ny "z"'},
        {"a": "3", "b": ""},
    ]


def test_a_csv_field_can_be_large() -> None:
    assert list(csv_rows("a\n" + "x" * 200_000)) == [{"a": "x" * 200_000}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n3\n", "line 3 of the CSV has 1 fields, the header has 2"),
        ("a,a\n1,2", "line 1: the header"),
        ('a\n"x\n', "line 2"),
        ('a\n1\n"x"y\n', "line 3"),
    ],
)
def test_broken_csv_is_named_with_its_line(text: str, words: str) -> None:
    with pytest.raises(StepError, match=words):
        list(csv_rows(text))


@pytest.mark.parametrize(
    ("line", "record"),
    [
        ("a=1 b=two", {"a": "1", "b": "two"}),
        ('level=info msg="hi \\"you\\"\\n\\u00fc"', {"level": "info", "msg": 'hi "you"\nü'}),
        ("a= flag b=x=y", {"a": "", "flag": "true", "b": "x=y"}),
        ("a=1 a=2", {"a": "2"}),
        ('msg=it"s', {"msg": 'it"s'}),
        ("  a=1  ", {"a": "1"}),
    ],
)
def test_logfmt_pairs(line: str, record: dict[str, str]) -> None:
    assert logfmt_record(line) == record


@pytest.mark.parametrize("line", ['a="open', "=x", "a=1 =x", 'a="x"y'])
def test_broken_logfmt_is_named_with_its_line(line: str) -> None:
    with pytest.raises(StepError, match="line 7"):
        logfmt_record(line, 7)
