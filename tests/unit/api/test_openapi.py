"""The OpenAPI document: complete, consistent, and strict where the code is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jsonschema

from pipeline_engine.api.errors import STATUSES
from pipeline_engine.api.openapi import describe
from pipeline_engine.api.routes import ROUTES
from pipeline_engine.decoding import to_json

DOCUMENT = describe(ROUTES)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def test_every_route_is_described() -> None:
    described = {(method.upper(), path) for path, calls in DOCUMENT["paths"].items() for method in calls}
    assert described == {(route.method, route.path) for route in ROUTES}
    assert DOCUMENT["openapi"].startswith("3.1")
    assert to_json(DOCUMENT)


def test_every_reference_leads_somewhere() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    found = set(references(DOCUMENT))
    assert found
    assert {reference.removeprefix("#/components/schemas/") for reference in found} <= schemas.keys()


def test_operations_have_names_of_their_own() -> None:
    names = [call["operationId"] for calls in DOCUMENT["paths"].values() for call in calls.values()]
    assert len(names) == len(set(names))


def test_variables_of_a_path_are_parameters() -> None:
    for path, calls in DOCUMENT["paths"].items():
        for call in calls.values():
            given = [one["name"] for one in call["parameters"] if one["in"] == "path"]
            assert given == re.findall(r"\{(\w+)\}", path)


def test_every_call_may_fail_and_says_how() -> None:
    for calls in DOCUMENT["paths"].values():
        for call in calls.values():
            errors = {int(status) for status in call["responses"] if int(status) >= 400}
            assert {400, 403, 500} <= errors <= set(STATUSES.values())
            for status in errors:
                schema = call["responses"][str(status)]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}


def test_requests_are_strict_and_answers_are_open() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert schemas["JobRequest"]["additionalProperties"] is False
    assert schemas["StepDef"]["additionalProperties"] is False
    assert "additionalProperties" not in schemas["Job"]


def test_a_key_can_be_written_and_not_read() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    key = str(schemas["ProviderProfile"]["properties"]["api_key"])
    assert "writeOnly" in key
    assert "api_key" not in schemas["ProviderView"]["properties"]


def test_parameters_have_the_limits_of_the_code() -> None:
    [limit] = [one for one in DOCUMENT["paths"]["/v1/jobs"]["get"]["parameters"] if one["name"] == "limit"]
    assert limit["schema"] == {"type": "integer", "minimum": 1, "maximum": 500, "default": 50}


def test_the_schemas_are_schemas() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
