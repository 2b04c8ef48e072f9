"""Reading bodies and queries into the wire types, strictly, with every problem named."""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import msgspec
import trio

from pipeline_engine.decoding import try_decode
from pipeline_engine.definitions import explain_overrides
from pipeline_engine.errors import InvalidRequestError, Problem
from pipeline_engine.jsontext import JsonTextError, loads_strict

LARGE_BODY = 512 * 1024  # bytes; decoding more would hold up everybody else for milliseconds

_WHOLE = re.compile(r"[0-9]{1,16}")
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_FLAGS = {"true": True, "1": True, "false": False, "0": False}

T = TypeVar("T", bound=msgspec.Struct)


async def read_json(data: bytes, *, optional: bool, limiter: trio.CapacityLimiter) -> Any:
    """The value of a JSON body; an optional one may be empty or null, which is an empty object.

    Raises InvalidRequestError.
    """
    if not data:
        if optional:
            return {}
        raise InvalidRequestError([Problem("", "the body is empty; JSON is expected")])
    if len(data) > LARGE_BODY:
        value = await trio.to_thread.run_sync(_parse, data, limiter=limiter)
    else:
        value = _parse(data)
    return {} if value is None and optional else value


def _parse(data: bytes) -> Any:
    try:
        return loads_strict(data.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise InvalidRequestError([Problem("", f"the body is not UTF-8 (byte {exc.start})")]) from exc
    except JsonTextError as exc:
        raise InvalidRequestError([Problem("", f"the body is not the JSON that is expected: {exc}")]) from exc


def decode_body(value: object, type_: type[T]) -> T:
    """The body as a request type. Raises InvalidRequestError."""
    decoded, problems = try_decode(value, type_)
    if decoded is None:
        raise InvalidRequestError(explain_overrides(problems))
    return decoded


def read_query(parameters: Iterable[tuple[str, str]], type_: type[T]) -> T:
    """The parameters of a query as a struct: whole numbers in digits, flags true or false, lists by repetition.

    An empty parameter means that it is not given. Raises InvalidRequestError, also for unknown parameters.
    """
    given: dict[str, list[str]] = {}
    for name, text in parameters:
        given.setdefault(name, []).append(text)
    kinds = _kinds(type_)
    problems = []
    values: dict[str, Any] = {}
    for name, texts in given.items():
        kind = kinds.get(name)
        if kind is list:
            values[name] = [text for text in texts if text]
        elif len(texts) > 1:
            problems.append(Problem(name, "is given more than once"))
        else:
            values[name] = _convert(texts[0], kind)
    decoded, found = try_decode(values, type_)
    if problems or decoded is None:
        raise InvalidRequestError([*problems, *found])
    return decoded


@functools.cache  # of the few query types there are; working it out costs more than the rest of a request
def _kinds(type_: type[msgspec.Struct]) -> dict[str, Any]:
    return {field.encode_name: _kind(field.type) for field in msgspec.structs.fields(type_)}


def _kind(type_: Any) -> Any:
    """The plain type within annotations and options."""
    while True:
        origin = get_origin(type_)
        if origin is Annotated:
            type_ = get_args(type_)[0]
        elif origin in (Union, types.UnionType):
            type_ = next(option for option in get_args(type_) if option is not type(None))
        else:
            return origin or type_


def _convert(text: str, kind: Any) -> Any:
    """What the text stands for; left as it is where it does not fit, so that decoding says so."""
    if kind is int and _WHOLE.fullmatch(text):
        return int(text)
    if kind is float and _NUMBER.fullmatch(text):
        return float(text)
    if kind is bool:
        return _FLAGS.get(text, text)
    return text
