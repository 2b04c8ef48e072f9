"""The options and labels of a job from the command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from pipeline_engine.cli.sources import characters
from pipeline_engine.decoding import to_json
from pipeline_engine.jsontext import JsonTextError, loads_strict
from pipeline_engine_sdk import InvalidRequest, NotFound, PipelineEngineClient

_JSON_TYPES = {
    bool: ("boolean",),
    int: ("integer", "number"),
    float: ("number",),
    list: ("array",),
    dict: ("object",),
    type(None): ("null",),
}


def parse_options(texts: Sequence[str]) -> dict[str, str]:
    """The options of `NAME=VALUE` as they are written; the last one of a name counts. Raises click.BadParameter."""
    pairs = map(parse_label, texts)
    return {characters(name): characters(value) for name, value in pairs}


def parse_label(text: str) -> tuple[str, str]:
    """A name and a value from `NAME=VALUE`."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE")
    return name, value


def option_values(written: Mapping[str, str], schema: object) -> dict[str, Any]:
    """What the options mean: a value that is JSON is that, any other a text.

    Where the schema takes a text and not what the JSON is, the value is the text as it is written: `1.10`, not 1.1.
    `schema` is the `options_schema` of the pipeline, checked or not.
    """
    declared = schema.get("properties") if isinstance(schema, Mapping) else None
    properties = declared if isinstance(declared, Mapping) else {}
    return {name: _value(text, properties.get(name)) for name, text in written.items()}


def find_schema(client: PipelineEngineClient, pipeline_type: str, written: Mapping[str, str]) -> object:
    """The `options_schema` of a pipeline. The daemon is asked for it only where the meaning of an option hangs on it."""
    if all(isinstance(_json_or_text(text), str) for text in written.values()):
        return None
    try:
        return client.get_pipeline(pipeline_type).to_dict().get("options_schema")
    except NotFound:  # the answer to the job tells it better
        return None


def text_hint(message: str, written: Mapping[str, str]) -> str:
    """How to write the option as a text that is refused because it is none; nothing of other refusals."""
    for name in re.findall(r"\$\.([^:\n]+): [^\n]* is not of type [^\n]*'string'", message):
        text = written.get(name)
        if text is not None and not isinstance(_json_or_text(text), str):
            return f"; as a text it is written -o {shlex.quote(f'{name}={to_json(text).decode()}')}"
    return ""


@contextmanager
def text_told(written: Mapping[str, str]) -> Iterator[None]:
    """What the daemon refuses in the block because it is no text is told with how to write one."""
    try:
        yield
    except InvalidRequest as exc:
        exc.message += text_hint(exc.message, written)
        raise


def _value(text: str, schema: object) -> Any:
    value = _json_or_text(text)
    if isinstance(value, str) or not isinstance(schema, Mapping):
        return value
    types = schema.get("type")
    allowed = types if isinstance(types, list) else [types]
    return text if "string" in allowed and not set(_JSON_TYPES[type(value)]) & set(map(str, allowed)) else value


def _json_or_text(text: str) -> Any:
    try:
        return loads_strict(text)
    except JsonTextError:
        return text
