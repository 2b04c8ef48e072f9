from __future__ import annotations

from typing import Any

import click
import pytest

from pipeline_engine.cli.options import option_values, parse_options, text_hint


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("1.10", None, 1.1),
        ("1.10", {"type": "string"}, "1.10"),
        ("true", {"type": "string"}, "true"),
        ("null", {"type": ["string"]}, "null"),
        ("null", {"type": ["string", "null"]}, None),
        ("5", {"type": ["string", "null"]}, "5"),
        ("5", {"type": ["string", "integer"]}, 5),
        ("5", {"type": ["string", "number"]}, 5),
        ("5", {"type": "number"}, 5),
        ("[1]", {"type": "string"}, "[1]"),
        ('"2024"', {"type": "string"}, "2024"),
        ("plain", {"type": "number"}, "plain"),
        ("5", True, 5),
        ("5", {"type": {}}, 5),
    ],
)
def test_an_option_that_the_schema_takes_as_a_text_is_one_as_it_is_written(text: str, schema: Any, value: Any) -> None:
    values = option_values(parse_options([f"x={text}"]), {"properties": {"x": schema}})
    assert values == {"x": value}
    assert type(values["x"]) is type(value)


@pytest.mark.parametrize("schema", [None, True, [], {}, {"properties": 3}, {"properties": {"y": {"type": "string"}}}])
def test_a_schema_that_says_nothing_of_an_option_leaves_it_as_json(schema: Any) -> None:
    assert option_values({"x": "5"}, schema) == {"x": 5}


def test_the_last_one_of_a_name_counts_and_a_name_is_needed() -> None:
    assert parse_options(["a=1", "a=2=3"]) == {"a": "2=3"}
    with pytest.raises(click.BadParameter, match="'=1' is not NAME=VALUE"):
        parse_options(["=1"])


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("input.options: $.x: 5 is not of type 'string'", "; as a text it is written -o 'x=\"5\"'"),
        ("input.options: $.x: 5 is not of type 'null', 'string'", "; as a text it is written -o 'x=\"5\"'"),
        ("input.options: $.x: 5 is not of type 'boolean'", ""),
        ("input.options: $.other: 5 is not of type 'string'", ""),
        ("the queue is full", ""),
    ],
)
def test_a_refusal_of_what_is_no_text_tells_how_to_write_one(message: str, hint: str) -> None:
    assert text_hint(message, {"x": "5"}) == hint
