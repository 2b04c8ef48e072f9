from __future__ import annotations

from pipeline_engine.mcp_server.bounds import ANSWER, cut_text, cut_value, first_of, shares


def test_short_texts_are_given_whole_and_long_ones_share_the_rest() -> None:
    assert shares([10, 1000, 5, 1000], 115) == [10, 50, 5, 50]
    assert shares([10, 20], 100) == [10, 20]
    assert shares([], 100) == []


def test_a_text_that_is_cut_says_how_much_is_missing() -> None:
    assert cut_text("abcdef", 6) == "abcdef"
    assert cut_text("abcdefg", 6) == "abcdef… [1 more characters]"


def test_long_parts_inside_of_a_value_are_cut() -> None:
    value = {"text": "x" * 600, "list": list(range(40)), "object": {str(number): number for number in range(40)}}
    cut = cut_value(value)
    assert cut["text"] == "x" * 500 + "… [100 more characters]"
    assert cut["list"] == [*range(30), "… 10 more"]
    assert (len(cut["object"]), cut["object"]["…"]) == (31, "10 more keys")
    assert cut_value({"a": [1, None, "b"]}) == {"a": [1, None, "b"]}


def test_a_list_ends_where_an_answer_is_full() -> None:
    assert first_of([1, 2, 3], 2) == [1, 2]
    assert first_of(["x" * (ANSWER // 2)] * 4, 10) == ["x" * (ANSWER // 2)]
    assert len(first_of(["x" * 2 * ANSWER, "y"], 10)) == 1
