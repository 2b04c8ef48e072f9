from __future__ import annotations

import time
from typing import Any

import pytest

from pipeline_engine.steps.schema_work import MAX_LIGHT_WORK, is_light

ANSWER = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Answer",
    "type": "object",
    "properties": {
        "people": {"type": "array", "items": {"$ref": "#/$defs/Person"}, "maxItems": 200},
        "topic": {"enum": ["work", "rest"]},
        "pattern": {"type": ["string", "null"], "default": None},
    },
    "required": ["people"],
    "additionalProperties": False,
    "$defs": {
        "Person": {
            "type": "object",
            "properties": {"name": {"type": "string", "minLength": 1}, "age": {"anyOf": [{"type": "integer"}, True]}},
            "required": ["name"],
        }
    },
}
PEOPLE = {"people": [{"name": "Ada", "age": 36}] * 100, "topic": "work", "pattern": None}


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        (PEOPLE, ANSWER),
        ([{"a": 1, "b": 2}] * 500, {"type": "array", "items": {"type": "object"}}),
        ("x" * 10_000, {"type": "string", "minLength": 1}),
        (1, True),
        ([[[1]]], {"items": {"prefixItems": [{"contains": {"const": 1}}]}}),
        ({"a": 1}, {"dependentSchemas": {"a": {"not": {"required": ["b"]}}}}),
        (1, {"if": {"type": "integer"}, "then": {"$ref": "#/$defs/a~1b"}, "$defs": {"a/b": {"minimum": 1}}}),
    ],
)
def test_checks_of_everyday_are_light(value: object, schema: object) -> None:
    assert is_light(value, schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": "a"},
        {"uniqueItems": True},
        {"propertyNames": {"maxLength": 3}},
        {"patternProperties": {"a": {}}},
        {"unevaluatedProperties": False},
        {"unevaluatedItems": False},
        {"$dynamicRef": "#a"},
        {"$ref": "http://other/schema.json"},
        {"$ref": "#here", "$defs": {"a": {"$anchor": "here"}}},
        {"$ref": "#/$defs/missing"},
        {"$ref": "#/allOf/x", "allOf": [True]},
        {"items": {"$ref": "#"}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"items": {"$ref": "#/$defs/a"}}}},
        {"$ref": "#/$defs/a/$defs/b", "$defs": {"a": {"$id": "http://a", "$defs": {"b": {"$ref": "#/$defs/c"}}}}},
        {"$ref": 5},
        {"allOf": [{"$schema": "http://json-schema.org/draft-07/schema#", "dependencies": {}}]},
        {"properties": {"a": {"items": {"pattern": "a"}}}},
        {"x-unknown": 1},
    ],
)
def test_what_cannot_be_bounded_is_never_light(schema: dict[str, Any]) -> None:
    assert not is_light(1, schema)


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        ([1] * MAX_LIGHT_WORK, {"items": {"type": "integer"}}),
        ("x" * 1_000_000, {"type": "integer"}),
        ([10**4000] * 500, {"type": "string"}),
        ({f"{n:1000}": n for n in range(5000)}, {"additionalProperties": False}),
        ([1] * 100, {"items": {"enum": list(range(1000))}}),
        ([1] * 1_000_000, True),
    ],
)
def test_much_work_is_not_light(value: object, schema: object) -> None:
    assert not is_light(value, schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/0", "$defs": {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(5000)}},
        {"$ref": "#/$defs/0", "$defs": {str(n): {"items": {"$ref": f"#/$defs/{n + 1}"}} for n in range(5000)}},
        {"properties": {str(n): {"type": "string"} for n in range(100_000)}},
        {"enum": [[n] for n in range(1_000_000)]},
    ],
    ids=["doubling", "chain", "wide", "data"],
)
def test_telling_takes_no_longer_than_a_light_check(schema: object) -> None:
    began = time.process_time()
    assert not is_light(1, schema)
    assert time.process_time() - began < 1  # seconds; some of these would take for ever
