"""The OpenAPI document: complete, consistent, and strict where the code is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from pipeline_engine.api.errors import STATUSES
from pipeline_engine.api.openapi import describe
from pipeline_engine.api.routes import ROUTES
from pipeline_engine.decoding import to_json
from pipeline_engine.events import EventName
from pipeline_engine_sdk import PipelineEngineClient

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
    components = {
        f"#/components/{kind}/{name}" for kind in ("schemas", "responses") for name in DOCUMENT["components"][kind]
    }
    assert set(references(DOCUMENT)) == components, "a component that nobody refers to is of no use"


def test_the_document_is_valid() -> None:
    # As a client gets it: what stands in it as a value of ours is JSON there.
    OpenAPIV31SpecValidator(json.loads(to_json(DOCUMENT))).validate()


def operations() -> list[dict[str, Any]]:
    return [call for calls in DOCUMENT["paths"].values() for call in calls.values()]


def test_operations_have_names_of_their_own_which_are_those_of_the_sdk() -> None:
    names = [call["operationId"] for call in operations()]
    assert len(names) == len(set(names))
    beyond_the_sdk = {
        "get_health", "get_readiness", "get_prometheus_metrics", "get_index", "get_openapi", "get_pipeline_graph"
    }  # fmt: skip
    assert {name for name in names if not hasattr(PipelineEngineClient, name)} == beyond_the_sdk


def test_operations_stand_in_the_groups_that_the_document_describes() -> None:
    assert {tag for call in operations() for tag in call["tags"]} == {tag["name"] for tag in DOCUMENT["tags"]}
    assert all(len(call["tags"]) == 1 for call in operations())


def test_health_needs_no_key() -> None:
    assert {call["operationId"] for call in operations() if call.get("security") == []} == {
        "get_health",
        "get_readiness",
    }
    assert DOCUMENT["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


@pytest.mark.parametrize(
    "name", ["JobRequest", "RerunRequest", "PipelineDef", "StepDef", "StepConfig", "ProviderProfile", "Source"]
)
def test_every_field_of_a_request_is_described_or_of_a_type_of_its_own(name: str) -> None:
    schema = DOCUMENT["components"]["schemas"][name]
    assert schema["description"]
    for field, part in schema["properties"].items():
        assert "description" in part or list(references(part)), field


def test_there_is_an_event_for_each_name_and_its_name_tells_its_data() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    names = {value for key, value in vars(EventName).items() if key.isupper()}
    assert schemas["Event"]["discriminator"]["mapping"].keys() == names
    assert schemas["EventLine"]["discriminator"]["mapping"].keys() == names | {"heartbeat", "error"}
    for name, reference in schemas["EventLine"]["discriminator"]["mapping"].items():
        assert schemas[reference.rpartition("/")[2]]["properties"]["event"] == {"type": "string", "const": name}
    assert schemas["ItemCompletedEvent"]["properties"]["data"] == {"$ref": "#/components/schemas/ResultItem"}


def test_answers_leave_fields_out_and_requests_may_give_null() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert schemas["Job"]["properties"]["started_at"] == {"type": "string", "format": "date-time"}
    assert schemas["Usage"]["required"] == ["prompt_tokens", "completion_tokens"]
    assert {"type": "null"} in schemas["JobRequest"]["properties"]["timeout_s"]["anyOf"]


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
                response = call["responses"][str(status)]
                assert response["$ref"] == "#/components/responses/Error"
                assert any(code in response["description"] for code, of in STATUSES.items() if of == status)
    schema = DOCUMENT["components"]["responses"]["Error"]["content"]["application/json"]["schema"]
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
