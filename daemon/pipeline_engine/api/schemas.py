"""The schemas of the OpenAPI document, made from the types that the code decodes and encodes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import msgspec

from pipeline_engine import models
from pipeline_engine.api import event_lines, wire
from pipeline_engine.api.field_docs import FIELDS, TYPES
from pipeline_engine.decoding import Secret
from pipeline_engine.models import FrozenWire
from pipeline_engine.pipeline import STEP_ID

JsonObject = dict[str, Any]

REF = "#/components/schemas/{name}"

_STRUCTS = {
    value.__name__: value
    for module in (models, wire, event_lines)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, msgspec.Struct)
}
_TIMES = {"created_at", "updated_at", "started_at", "finished_at"}


def ref(name: str) -> JsonObject:
    return {"$ref": REF.format(name=name)}


#: Fields of which more is known than their types say.
_REPLACED = {
    (wire.EventsPage, "events"): {"type": "array", "items": ref(event_lines.EVENT)},
    (models.ResultItem, "data"): ref("ItemData"),
    (models.StepDef, "id"): {"type": "string", "pattern": f"^{STEP_ID.pattern}$"},
    (models.StepExecution, "chunks"): {"type": "array", "items": ref("Chunk")},
}


def describe_types(types: Iterable[Any]) -> tuple[dict[Any, JsonObject], dict[str, JsonObject]]:
    """The schema of each type, and the components that these schemas and the events refer to."""
    all_types = tuple(dict.fromkeys((*types, *event_lines.DATA_TYPES, wire.ItemData)))
    schemas, components = msgspec.json.schema_components(all_types, schema_hook=_schema_of_secret, ref_template=REF)
    for name, schema in components.items():
        if name in _STRUCTS:
            _complete(_STRUCTS[name], schema)
    _spell_out(components)
    for type_, words in TYPES.items():
        components[type_.__name__]["description"] = words
    components |= event_lines.event_schemas(REF)
    return dict(zip(all_types, schemas, strict=True)), components


def describe_query(type_: type[msgspec.Struct]) -> dict[str, JsonObject]:
    """The schema of each parameter."""
    _, components = msgspec.json.schema_components([type_], ref_template=REF)
    schema = components[type_.__name__]
    _complete(type_, schema)
    _spell_out(schema)
    parameters: dict[str, JsonObject] = schema["properties"]
    return parameters


def _schema_of_secret(type_: type) -> JsonObject:
    if type_ is Secret:
        return {"type": "string", "format": "password", "writeOnly": True}
    raise NotImplementedError(f"{type_.__name__} has no schema")


def _spell_out(value: Any) -> None:
    """Say what generators do not find out: enums are strings, and an object without fields may hold anything."""
    if isinstance(value, dict):
        if isinstance(value.get("enum"), list):
            value["type"] = "string"
        if value.get("type") == "object" and "properties" not in value:
            value.setdefault("additionalProperties", True)
        for part in value.values():
            _spell_out(part)
    elif isinstance(value, list):
        for part in value:
            _spell_out(part)


def _complete(struct: type[msgspec.Struct], schema: JsonObject) -> None:
    """What msgspec cannot know: what is refused, what is always there, and what the fields mean."""
    properties: dict[str, JsonObject] = schema["properties"]
    is_request = issubclass(struct, FrozenWire)
    for part in properties.values():
        default = part.get("default")
        if default is None or isinstance(default, dict):
            part.pop("default", None)  # that it may be left out says as much
    if is_request:
        schema["additionalProperties"] = False  # requests are decoded strictly (see decoding)
    elif struct.__struct_config__.omit_defaults:
        for name in properties.keys() - set(schema.get("required", ())):
            properties[name] = _without_null(properties[name])
    else:
        schema["required"] = list(properties)
    for name in properties.keys() & _TIMES:
        properties[name]["format"] = "date-time"
    for (replaced, name), part in _REPLACED.items():
        if replaced is struct:
            properties[name] = part.copy()
    for name, words in FIELDS.get(struct, {}).items():
        properties[name]["description"] = words
    if "description" in schema:  # a docstring, whose lines Python 3.13 and earlier ones indent differently
        schema["description"] = inspect.cleandoc(schema["description"])


def _without_null(schema: JsonObject) -> JsonObject:
    """Answers leave a field out instead of giving null."""
    choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) != 1:
        return schema
    return {**{key: value for key, value in schema.items() if key != "anyOf"}, **choices[0]}
