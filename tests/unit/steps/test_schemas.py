from __future__ import annotations

import time
from typing import Any

import pytest

from pipeline_engine.steps.schemas import MAX_MESSAGES, MAX_SCHEMA_PARTS, Schema, check_schema, validate

SCHEMA: Schema = {
    "type": "object",
    "properties": {"score": {"type": "number"}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["score"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"score": "three"}, ["$.score", "'three'"]),
        ({}, ["'score' is a required property"]),
        ({"score": 1, "tags": ["a", None]}, ["$.tags[1]", "null"]),
        ({"score": 1, "z": 1}, ["'z'"]),
        ("x" * 5000, ["…"]),
    ],
)
def test_a_message_has_the_path_and_the_value(value: object, words: list[str]) -> None:
    (message,) = validate(value, SCHEMA)
    for word in words:
        assert word in message
    assert len(message) < 400


def test_a_good_value_has_no_messages() -> None:
    assert validate({"score": 1, "tags": ["a"]}, SCHEMA) == []
    assert validate({"anything": 1}, True) == []


def test_messages_are_bounded() -> None:
    assert len(validate([1] * 1000, {"items": {"type": "string"}})) == MAX_MESSAGES


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "foo"}, "'foo'"),
        ({"properties": {"a": {"pattern": "("}}}, "regex"),
        ({"$ref": "http://127.0.0.1:1/schema.json"}, "not fetched"),
        ({"properties": {"a": {"$ref": "#/$defs/no"}}}, "#/$defs/no"),
        ({"properties": {"a": {"pattern": "a{99999999999}"}}}, "the repetition number is too large"),
        ({"allOf": [{"$schema": "http://json-schema.org/draft-03/schema#", "extends": [5]}]}, "not a JSON Schema"),
        ({"$ref": "#/allOf/x", "allOf": [True]}, "#/allOf/x"),
        ({"$ref": "#/minimum/x", "minimum": 5}, "#/minimum/x"),
        ({"$ref": "#/type", "type": ["string"]}, "'#/type', which is no schema"),
        ({"$ref": "#/minimum", "minimum": 5}, "'#/minimum', which is no schema"),
        ({"$dynamicRef": "#/minimum", "minimum": 5}, "'#/minimum', which is no schema"),
    ],
)
def test_a_schema_that_cannot_be_used_is_named(schema: dict[str, Any], words: str) -> None:
    message = check_schema(schema)
    assert message is not None
    assert words in message


def test_a_schema_that_is_too_large_is_refused_without_reading_it_all() -> None:
    began = time.process_time()
    message = check_schema({"properties": {str(number): {"type": "string"} for number in range(200_000)}})
    assert message == f"is too large: a JSON Schema may have {MAX_SCHEMA_PARTS} parts"
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "schema",
    [
        SCHEMA,
        True,
        {"$ref": "#/$defs/a", "$defs": {"a": {"$anchor": "here"}, "b": {"$ref": "#here"}}},
        {"$id": "http://x/y", "$ref": "b", "$defs": {"a": {"$id": "b", "$ref": "#/$defs/c", "$defs": {"c": {}}}}},
        {"properties": {"$ref": {"type": "string"}}, "const": {"$ref": "no reference"}},
    ],
)
def test_a_schema_may_refer_to_itself(schema: Schema) -> None:
    assert check_schema(schema) is None


def test_an_unusable_schema_gives_a_message_and_no_exception() -> None:
    assert "without end" in validate(1, {"$ref": "#"})[0]
    assert "http://x/y" in validate(1, {"$ref": "http://x/y"})[0]


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/type", "type": ["string"]},
        {"$ref": "#/minimum", "minimum": 5},
        {"$ref": "#/allOf/x", "allOf": [True]},
        {"$ref": "#/const", "const": {"type": 5}},
        {"$ref": "#/const", "const": {"type": "magic"}},
        {"$ref": 5},
        {"$id": 5},
    ],
)
def test_a_schema_that_nobody_checked_gives_a_message_and_no_exception(schema: dict[str, Any]) -> None:
    [fault] = validate("1", schema)
    assert fault.startswith("$: the schema cannot be applied")


def test_a_pattern_that_takes_for_ever_is_given_up() -> None:
    [fault] = validate("x" * 5000 + "z", {"pattern": r"^(x|xx)+(?<!z)y|^((x+)*)*\d$"})
    assert "took longer than 0.1 s" in fault


def test_a_pattern_that_is_none_is_told() -> None:
    assert validate("x", {"pattern": "("})[0].startswith("$: '(' is not a regular expression")
    assert validate(1, {"pattern": "("}) == []
