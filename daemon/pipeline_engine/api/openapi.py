"""Describes the API as an OpenAPI document, made from the routes and from the types that the code decodes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from pipeline_engine import __version__
from pipeline_engine.api.calls import Route
from pipeline_engine.api.errors import STATUSES
from pipeline_engine.api.wire import ErrorAnswer, EventLine
from pipeline_engine.decoding import Secret
from pipeline_engine.models import FrozenWire

_REF = "#/components/schemas/{name}"
_VARIABLE = re.compile(r"\{(\w+)\}")
_NDJSON = "application/x-ndjson"
_SUCCESSES = {200: "ok", 201: "created", 202: "accepted", 204: "done", 304: "not modified"}

JsonObject = dict[str, Any]


def describe(routes: Sequence[Route]) -> JsonObject:
    """The OpenAPI 3.1 document of the routes, error answers included."""
    types = list(_types_in(routes))
    schemas, components = msgspec.json.schema_components(types, schema_hook=_schema_of_secret, ref_template=_REF)
    known = dict(zip(types, schemas, strict=True))
    _forbid_unknown_keys(components)
    for schema in components.values():
        if "description" in schema:  # a docstring, whose lines Python 3.13 and earlier ones indent differently
            schema["description"] = inspect.cleandoc(schema["description"])
    paths: JsonObject = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, known)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Pipeline Engine", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _types_in(routes: Iterable[Route]) -> dict[Any, None]:
    """Each type of a body once, in the order in which the routes have them."""
    found: dict[Any, None] = {}
    for route in routes:
        if route.body is not None:
            found[route.body] = None
        for answer in route.answers.values():
            for part in answer if isinstance(answer, tuple) else (answer,):
                if part is not None and not isinstance(part, str):
                    found[part] = None
    return found | dict.fromkeys((EventLine, ErrorAnswer))


def _schema_of_secret(type_: type) -> JsonObject:
    if type_ is Secret:
        return {"type": "string", "format": "password", "writeOnly": True}
    raise NotImplementedError(f"{type_.__name__} has no schema")


def _forbid_unknown_keys(components: dict[str, JsonObject]) -> None:
    """What requests consist of is decoded strictly (see decoding)."""
    waiting = [FrozenWire]
    while waiting:
        subclasses = waiting.pop().__subclasses__()
        waiting += subclasses
        for subclass in subclasses:
            if subclass.__name__ in components:
                components[subclass.__name__]["additionalProperties"] = False


def _operation(route: Route, known: dict[Any, JsonObject]) -> JsonObject:
    operation: JsonObject = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "parameters": [*_path_parameters(route.path), *_query_parameters(route), *_header_parameters(route)],
        "responses": _responses(route, known),
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": not route.body_optional,
            "content": {"application/json": {"schema": known[route.body]}},
        }
    return operation


def _path_parameters(path: str) -> list[JsonObject]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in _VARIABLE.findall(path)
    ]


def _query_parameters(route: Route) -> list[JsonObject]:
    _, components = msgspec.json.schema_components([route.query], ref_template=_REF)
    parameters = []
    for name, schema in components[route.query.__name__]["properties"].items():
        description = schema.pop("description", None)
        parameter = {"name": name, "in": "query", "required": False, "schema": schema}
        parameters.append(parameter | ({"description": description} if description else {}))
    return parameters


def _header_parameters(route: Route) -> list[JsonObject]:
    return [
        {"name": name, "in": "header", "required": False, "description": words, "schema": {"type": "string"}}
        for name, words in route.headers.items()
    ]


def _responses(route: Route, known: dict[Any, JsonObject]) -> JsonObject:
    responses: JsonObject = {}
    for status, answer in route.answers.items():
        response: JsonObject = {"description": _SUCCESSES[status]}
        if answer is not None:
            parts = answer if isinstance(answer, tuple) else (answer,)
            response["content"] = dict(_content(part, known) for part in parts)
        responses[str(status)] = response
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys((*_common_errors(route), *route.errors)):
        by_status.setdefault(STATUSES[code], []).append(code)
    for status in sorted(by_status):
        responses[str(status)] = {
            "description": ", ".join(by_status[status]),
            "content": {"application/json": {"schema": known[ErrorAnswer]}},
        }
    return responses


def _content(part: Any, known: dict[Any, JsonObject]) -> tuple[str, JsonObject]:
    if part == _NDJSON:
        return part, {"schema": known[EventLine]}
    if isinstance(part, str):
        return part, {"schema": {"type": "string"}}
    return "application/json", {"schema": known[part]}


def _common_errors(route: Route) -> Iterable[str]:
    yield "invalid_request"
    if not route.path.startswith("/health"):
        yield "unauthorized"
    yield "forbidden"
    if route.body is not None:
        yield "payload_too_large"
        yield "unsupported_media_type"
    yield "internal"
    if route.needs_engine:
        yield "unavailable"
