"""Checking JSON values against a JSON Schema (draft 2020-12)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import regex
from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import SchemaError, UnknownType, ValidationError
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012, EMPTY_REGISTRY, SchemaRegistry

from pipeline_engine.jsontext import JsonTextError, dumps_compact
from pipeline_engine.steps.schema_work import count_parts

Schema = dict[str, Any] | bool

MAX_MESSAGES = 10  # of one value: a model mends no more at a time
MAX_SCHEMA_PARTS = 5_000  # keys and values; checking a schema takes some 0.02 ms for each
PATTERN_SECONDS = 0.1  # that a pattern may take for one text
_SHOWN = 100  # characters of an offending value


#: What the libraries raise for schemas that they did not foresee: a repetition that is too large, a reference to what
#: is no schema, the words of another draft.
_UNFORESEEN = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, UnknownType)


def check_schema(schema: Schema) -> str | None:
    """What is wrong with the schema itself; None if it can be used. References to other documents are never fetched."""
    if count_parts(schema, limit=MAX_SCHEMA_PARTS) > MAX_SCHEMA_PARTS:
        return f"is too large: a JSON Schema may have {MAX_SCHEMA_PARTS} parts"
    try:
        Draft202012Validator.check_schema(schema)
        return _bad_reference(schema)
    except SchemaError as exc:
        return f"is not a JSON Schema: {_message(exc)}"
    except RecursionError:
        return "is not a JSON Schema: it is nested too deeply"
    except _UNFORESEEN as exc:
        return f"is not a JSON Schema: {exc}"


def validate(value: object, schema: Schema) -> list[str]:
    """What is wrong with the value, each message with the path (`$.items[0].score`) and the offending value.

    A schema can make this take for ever: the event loop asks schema_checks.py.
    """
    try:
        validator = _Validator(schema, registry=EMPTY_REGISTRY)
        return [_message(error) for error in islice(validator.iter_errors(value), MAX_MESSAGES)]
    except RecursionError:
        return ["$: the schema refers to itself without end"]
    except Unresolvable as exc:
        return [f"$: the schema refers to {exc.ref!r}, which is not in it"]
    except ArithmeticError as exc:
        return [f"$: a number cannot be compared: {exc}"]
    except _UNFORESEEN as exc:
        return [f"$: the schema cannot be applied: {exc}"]


def _match(_: object, pattern: str, instance: object, __: object) -> Iterator[ValidationError]:
    """The keyword `pattern`, bounded: a bad pattern would hold up the daemon for ever."""
    if not isinstance(instance, str):
        return
    try:
        if regex.search(pattern, instance, timeout=PATTERN_SECONDS) is None:
            yield ValidationError(f"{instance!r} does not match {pattern!r}")
    except TimeoutError:
        yield ValidationError(f"the pattern {pattern!r} took longer than {PATTERN_SECONDS:g} s")
    except regex.error as exc:
        yield ValidationError(f"{pattern!r} is not a regular expression: {exc}")


_Validator = validators.extend(Draft202012Validator, {"pattern": _match})  # type: ignore[no-untyped-call]  # in the stubs


def _bad_reference(schema: Schema) -> str | None:
    """What is wrong with the first reference that does not lead to a schema."""
    root = DRAFT202012.create_resource(schema)
    registry: SchemaRegistry = EMPTY_REGISTRY.with_resource("", root)
    waiting = [(root, registry.crawl().resolver_with_root(root))]
    while waiting:
        resource, resolver = waiting.pop()
        for reference in _references_in(resource.contents):
            try:
                target = resolver.lookup(reference).contents
            except (Unresolvable, TypeError, ValueError):  # the last two: a path through what has no such parts
                return f"refers to {reference!r}, which is not in the schema; other documents are not fetched"
            if not isinstance(target, dict | bool):
                return f"refers to {reference!r}, which is no schema"
        waiting += [(part, resolver.in_subresource(part)) for part in resource.subresources()]
    return None


def _references_in(schema: Schema) -> list[str]:
    return [schema[key] for key in ("$ref", "$dynamicRef") if key in schema] if isinstance(schema, dict) else []


def _message(error: ValidationError | SchemaError) -> str:
    message: str = error.message
    shown = repr(error.instance)
    if message.startswith(shown):
        message = _short(error.instance) + message[len(shown) :]
    if len(message) > 3 * _SHOWN:
        message = message[: 3 * _SHOWN] + "…"
    return f"{error.json_path}: {message}"


def _short(value: object) -> str:
    """The value as JSON (a text in quotes), cut when long."""
    try:
        text = repr(value) if isinstance(value, str) else dumps_compact(value)
    except JsonTextError:
        text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
