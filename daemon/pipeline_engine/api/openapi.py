"""Describes the API as an OpenAPI document, made from the routes and from the types that the code decodes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline_engine import __version__
from pipeline_engine.api.calls import Route
from pipeline_engine.api.errors import STATUSES
from pipeline_engine.api.event_lines import EVENT_LINE
from pipeline_engine.api.examples import ANSWERS, BODIES, ERRORS
from pipeline_engine.api.schemas import describe_query, describe_types, ref
from pipeline_engine.api.wire import ErrorAnswer

_VARIABLE = re.compile(r"\{(\w+)\}")
_JSON = "application/json"
_NDJSON = "application/x-ndjson"
_TEXTS = ("text/event-stream", "text/plain")
_SUCCESSES = {
    200: "The answer.",
    201: "Added.",
    202: "Accepted: the new job is queued.",
    204: "Done.",
    304: "Not modified: the client has these bytes.",
}
_LINE_BY_LINE = "The answer. A stream has one JSON object a line, each an EventLine."
_TAGS = {
    "jobs": "Submit, read, cancel, rerun and delete jobs.",
    "events": "What happens to a job, as it happens.",
    "artifacts": "Files that steps made.",
    "pipelines": "Definitions that jobs can name.",
    "providers": "Where model servers are, and how they are called.",
    "daemon": "Health, metrics and settings.",
}
_VARIABLES = {
    "jobs": {"id": "The id of the job."},
    "events": {"id": "The id of the job."},
    "artifacts": {"id": "The id of the job.", "artifact": "The `id` of the artifact, as the item has it."},
    "pipelines": {"type": "The `type` of the definition."},
    "providers": {"id": "The `id` of the profile."},
}
_ANSWER_HEADERS = {
    202: {"Location": "The address of the job."},
    304: {"ETag": "That of the bytes."},
}
_ERROR_HEADERS = {
    "Retry-After": "With 429: in how many seconds to try again.",
    "WWW-Authenticate": "With 401: `Bearer`.",
}
_ABOUT = """A resident daemon that runs pipelines of local and remote AI steps.

Times are RFC 3339 in UTC. In a request, null or an empty string means absent, and an unknown key is refused with its
path. Clients must pass over keys of answers, and events, that they do not know. Every error has the same form."""

JsonObject = dict[str, Any]


def describe(routes: Sequence[Route]) -> JsonObject:
    """The OpenAPI 3.1 document of the routes, error answers included."""
    known, schemas = describe_types(_types_in(routes))
    paths: JsonObject = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, known)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Pipeline Engine",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "The daemon that gives this document."}],
        "tags": [{"name": name, "description": words} for name, words in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {"Error": _error_response(known)},
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The API key of a daemon that was given one. On the unix socket none is needed.",
                }
            },
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
    return found | {ErrorAnswer: None}


def _operation(route: Route, known: dict[Any, JsonObject]) -> JsonObject:
    name = route.handler.__name__
    operation: JsonObject = {"operationId": name, "tags": [route.tag], "summary": route.summary}
    if route.description:
        operation["description"] = route.description
    if route.path.startswith("/health"):
        operation["security"] = []
    operation["parameters"] = [*_path_parameters(route), *_query_parameters(route), *_header_parameters(route)]
    if route.body is not None:
        operation["requestBody"] = {
            "required": not route.body_optional,
            "content": {_JSON: {"schema": known[route.body], "examples": BODIES[name]}},
        }
    operation["responses"] = _responses(route, known)
    return operation


def _path_parameters(route: Route) -> list[JsonObject]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _VARIABLES[route.tag][name],
            "schema": {"type": "string"},
        }
        for name in _VARIABLE.findall(route.path)
    ]


def _query_parameters(route: Route) -> list[JsonObject]:
    parameters = []
    for name, schema in describe_query(route.query).items():
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
        parts = answer if isinstance(answer, tuple) else () if answer is None else (answer,)
        response: JsonObject = {"description": _LINE_BY_LINE if _NDJSON in parts else _SUCCESSES[status]}
        if status in _ANSWER_HEADERS:
            response["headers"] = _headers(_ANSWER_HEADERS[status])
        if parts:
            response["content"] = dict(_content(route, status, part, known) for part in parts)
        responses[str(status)] = response
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys((*_common_errors(route), *route.errors)):
        by_status.setdefault(STATUSES[code], []).append(code)
    for status in sorted(by_status):
        codes = " or ".join(f"`{code}`" for code in by_status[status])
        responses[str(status)] = {"$ref": "#/components/responses/Error", "description": f"An error: {codes}."}
    return responses


def _content(route: Route, status: int, part: Any, known: dict[Any, JsonObject]) -> tuple[str, JsonObject]:
    media_type = part if isinstance(part, str) else _JSON
    examples = ANSWERS.get((route.handler.__name__, status), {}).get(media_type)
    shown = {"examples": examples} if examples else {}
    return media_type, {"schema": _schema_of_body(part, known), **shown}


def _schema_of_body(part: Any, known: dict[Any, JsonObject]) -> JsonObject:
    if part == _NDJSON:
        return ref(EVENT_LINE)
    if isinstance(part, str):
        return {"type": "string"} if part in _TEXTS else {"type": "string", "format": "binary"}
    return known[part]


def _error_response(known: dict[Any, JsonObject]) -> JsonObject:
    return {
        "description": "An error.",
        "headers": _headers(_ERROR_HEADERS),
        "content": {_JSON: {"schema": known[ErrorAnswer], "examples": ERRORS}},
    }


def _headers(described: dict[str, str]) -> JsonObject:
    return {name: {"description": words, "schema": {"type": "string"}} for name, words in described.items()}


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
