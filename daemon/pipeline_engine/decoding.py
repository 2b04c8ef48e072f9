"""Between JSON and the wire types: strict decoding that finds every problem, and encoding that hides secrets."""

from __future__ import annotations

import functools
import math
import re
import threading
import types
from enum import StrEnum
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import msgspec

from pipeline_engine.errors import InvalidRequestError, Problem

T = TypeVar("T")

#: `Annotated[str, KEEP_EMPTY]`: an empty string is a value of its own here and does not mean "absent".
KEEP_EMPTY = msgspec.Meta(extra={"empty": "kept"})

_FAILED: Any = object()

# msgspec works out at its first use what a struct consists of. Two threads that do so at the same time crash the
# process (seen with 0.22.0, at a start with many jobs to resume), so it is done by one at a time.
_building = threading.Lock()
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}
_SURROGATE = re.compile("[\ud800-\udfff]")


class Secret:
    """A text that shows itself only when asked to: never in a repr, a log, an error or a JSON document."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


def _hide(value: object) -> object:
    if isinstance(value, Secret):
        return "***"
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _reveal(value: object) -> object:
    return value.reveal() if isinstance(value, Secret) else _hide(value)


def _restore(type_: type, value: Any) -> Any:
    return Secret(value) if type_ is Secret else value


_SHOWN = msgspec.json.Encoder(enc_hook=_hide)
_STORED = msgspec.json.Encoder(enc_hook=_reveal)


def to_json(value: object) -> bytes:
    """The value as compact JSON, as anybody may see it: secrets are `***`."""
    return _encode(_SHOWN, value)


def to_stored_json(value: object) -> bytes:
    """The value as compact JSON for the store, which alone holds secrets."""
    return _encode(_STORED, value)


def _encode(encoder: msgspec.json.Encoder, value: object) -> bytes:
    try:
        return encoder.encode(value)
    except UnicodeEncodeError:
        # What programs and plug-ins say may hold halves of surrogate pairs. Such a text must not keep a job from ending.
        return encoder.encode(_whole_characters(msgspec.to_builtins(value, enc_hook=encoder.enc_hook)))


def _whole_characters(value: Any) -> Any:
    """Plain data, in which each half of a surrogate pair is replaced."""
    if isinstance(value, str):
        return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, dict):
        return {_whole_characters(key): _whole_characters(part) for key, part in value.items()}
    return [_whole_characters(part) for part in value] if isinstance(value, list | tuple) else value


def from_stored_json(text: bytes, type_: type[T]) -> T:
    """What to_stored_json (or to_json) made of a value of that type; unknown keys are passed over."""
    decoder = _decoders.get(type_)
    if decoder is None:
        with _building:
            decoder = _decoders.setdefault(type_, msgspec.json.Decoder(type_, dec_hook=_restore))
    return decoder.decode(text)  # type: ignore[no-any-return]  # the key says of which type it is


def decode(value: object, type_: type[T], *, path: str = "", source: str | None = None) -> T:
    """The value as `type_`, a msgspec struct.

    In structs null and an empty string mean "absent", and an unknown key is a problem. Raises InvalidRequestError
    with the path of everything that is wrong (`source` names the file, if there is one).
    """
    decoded, problems = try_decode(value, type_, path=path)
    if decoded is None:
        raise InvalidRequestError(problems, source=source)
    return decoded


def try_decode(value: object, type_: type[T], *, path: str = "") -> tuple[T | None, list[Problem]]:
    """Like decode, but returns the problems: the value is None exactly when there are any."""
    problems: list[Problem] = []
    decoded = _decode(value, type_, path, problems)
    return (None, problems) if problems else (decoded, problems)


def _decode(value: Any, type_: Any, path: str, problems: list[Problem]) -> Any:
    constraints: list[msgspec.Meta] = []
    while get_origin(type_) is Annotated:
        type_, *metas = get_args(type_)
        constraints += [meta for meta in metas if isinstance(meta, msgspec.Meta)]
    origin = get_origin(type_)
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(type_) if option is not type(None)]
        if value is None:
            return None
        if len(options) == 1:
            return _decode(value, _annotated(options[0], constraints), path, problems)
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        return _decode_struct(value, type_, path, problems)
    if origin is list:
        return _decode_list(value, get_args(type_)[0], constraints, path, problems)
    if origin is dict and get_args(type_)[1] is not Any:
        return _decode_dict(value, get_args(type_)[1], constraints, path, problems)
    return _decode_leaf(value, type_, constraints, path, problems)


@functools.cache  # msgspec evaluates all annotations anew at each call
def _fields(type_: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.encode_name: field for field in msgspec.structs.fields(type_)}


def _annotated(type_: Any, constraints: list[msgspec.Meta]) -> Any:
    for constraint in constraints:
        type_ = Annotated[type_, constraint]
    return type_


def _decode_struct(value: Any, type_: type[msgspec.Struct], path: str, problems: list[Problem]) -> Any:
    if not isinstance(value, dict):
        problems.append(Problem(path, f"expected an object, got {_described(value)}"))
        return _FAILED
    before = len(problems)
    fields = _fields(type_)
    for key in value:
        if key not in fields:
            problems.append(Problem(_join(path, key), f"unknown key; known here: {', '.join(fields)}"))
    values: dict[str, Any] = {}
    for key, field in fields.items():
        given = value.get(key)
        absent = given is None or (given == "" and isinstance(given, str) and not _keeps_empty(field.type))
        if not absent:
            values[field.name] = _decode(given, field.type, _join(path, key), problems)
        elif field.required:
            problems.append(Problem(_join(path, key), "is required"))
    return _FAILED if len(problems) > before else type_(**values)


def _keeps_empty(type_: Any) -> bool:
    if get_origin(type_) is Annotated:
        return KEEP_EMPTY in get_args(type_)[1:]
    return any(_keeps_empty(option) for option in get_args(type_))


def _decode_list(value: Any, element: Any, constraints: list[msgspec.Meta], path: str, problems: list[Problem]) -> Any:
    if not isinstance(value, list):
        problems.append(Problem(path, f"expected a list, got {_described(value)}"))
        return _FAILED
    for meta in constraints:
        if meta.min_length is not None and len(value) < meta.min_length:
            problems.append(Problem(path, "must not be empty"))
        if meta.max_length is not None and len(value) > meta.max_length:
            problems.append(Problem(path, f"has {len(value)} entries; at most {meta.max_length} are allowed"))
    return [_decode(part, element, f"{path}[{index}]", problems) for index, part in enumerate(value)]


def _decode_dict(value: Any, element: Any, constraints: list[msgspec.Meta], path: str, problems: list[Problem]) -> Any:
    if not isinstance(value, dict):
        problems.append(Problem(path, f"expected an object, got {_described(value)}"))
        return _FAILED
    for meta in constraints:
        if meta.max_length is not None and len(value) > meta.max_length:
            problems.append(Problem(path, f"has {len(value)} entries; at most {meta.max_length} are allowed"))
    return {key: _decode(part, element, _join(path, key), problems) for key, part in value.items()}


def _decode_leaf(value: Any, type_: Any, constraints: list[msgspec.Meta], path: str, problems: list[Problem]) -> Any:
    if type_ is Secret:
        if isinstance(value, str):
            return Secret(value)
        problems.append(Problem(path, f"expected a text, got {_described(value, show=False)}"))
        return _FAILED
    if isinstance(type_, type) and issubclass(type_, StrEnum):
        known = [member.value for member in type_]
        if isinstance(value, str) and value in known:
            return type_(value)
        problems.append(Problem(path, f"{_described(value)} is not one of {', '.join(known)}"))
        return _FAILED
    if type_ is str and not isinstance(value, str):
        hint = "; put it in quotes" if isinstance(value, int | float) else ""
        problems.append(Problem(path, f"expected a text, got {_described(value)}{hint}"))
        return _FAILED
    if isinstance(value, float) and not math.isfinite(value):
        problems.append(Problem(path, f"{value} is not a number that JSON knows"))
        return _FAILED
    try:
        with _building:
            return msgspec.convert(value, _annotated(type_, constraints))
    except msgspec.ValidationError as exc:
        words = str(exc).replace("`", "").replace("Expected", "expected", 1)
        problems.append(Problem(path, f"{words} (it is {_described(value)})"))
        return _FAILED


def _described(value: object, *, show: bool = True) -> str:
    """A short name of a value for messages: its JSON form, cut when long."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if not show:
        return "something else"
    text = repr(value) if isinstance(value, str) else msgspec.json.encode(value, enc_hook=repr).decode()
    return text if len(text) <= 60 else text[:57] + "..."


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
