from __future__ import annotations

import pytest

from pipeline_engine.jsontext import MAX_DEPTH, JsonTextError, dumps_compact, loads_strict


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("NaN", "NaN is not JSON at line 1, column 1"),
        ('{"a":\n -Infinity}', "-Infinity is not JSON at line 2, column 2"),
        ("[1e999]", "1e999 is too large at line 1, column 2"),
        ('{"a":1,"a":2}', "'a' stands twice"),
        ('["\\ud83d"]', "surrogate"),
        ('{"\\udc00":1}', "surrogate"),
        ("[" * 100_000, "nested"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested deeper"),
        ("1" * 5000, "too long"),
        ('{"a":1', "line 1, column 7"),
        ("", "line 1, column 1"),
        ("1 2", "extra data at line 1, column 3"),
    ],
)
def test_what_is_not_strict_json_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(JsonTextError) as caught:
        loads_strict(text)
    assert words in str(caught.value)


def test_lines_are_counted_from_where_the_text_begins() -> None:
    with pytest.raises(JsonTextError, match="line 8, column 1"):
        loads_strict("\nx", first_line=7)


def test_whole_numbers_and_surrogate_pairs_stay_exact() -> None:
    assert loads_strict("[12345678901234567890, 1.5, true, null]") == [12345678901234567890, 1.5, True, None]
    assert loads_strict('"\\ud83d\\ude00"') == "\N{GRINNING FACE}"


def test_written_json_is_compact_and_not_escaped_beyond_need() -> None:
    assert dumps_compact({"ü": [1, True, None, "<a>"]}) == '{"ü":[1,true,null,"<a>"]}'


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": object()}])
def test_what_json_cannot_say_is_refused(value: object) -> None:
    with pytest.raises(JsonTextError):
        dumps_compact(value)
