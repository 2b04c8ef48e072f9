"""Between JSON and the wire types: strict decoding that finds every problem, and encoding that hides secrets."""

from __future__ import annotations

import functools
import math
import re
import threading
import types
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple, NewType, TypeAlias, TypeVar, Union, get_args, get_origin

import msgspec

from pipeline_engine.errors import InvalidRequestError, Problem

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

#: `Annotated[str, KEEP_EMPTY]`: an empty string is a value of its own here and does not mean "absent".
KEEP_EMPTY = msgspec.Meta(extra={"empty": "kept"})

_FAILED: Any = object()
_Decoder: TypeAlias = Callable[[Any, str, list[Problem]], Any]

# msgspec works out at its first use what a struct consists of. Two threads that do so at the same time crash the
# process (seen with 0.22.0, at a start with many jobs to resume), so it is done by one at a time.
_building = threading.Lock()
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}
_SURROGATE = re.compile("[\ud800-\udfff]")

#: The names of types in msgspec's messages, and the words of JSON and YAML for them.
_TYPE_NAME = re.compile("`([^`]+)`")
_TYPE_WORDS = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "object": "an object",
    "str": "a text",
}


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


def decode(value: object, type_: type[S], *, path: str = "", source: str | None = None) -> S:
    """The value as `type_`, a msgspec struct.

    In structs null and an empty string mean "absent", and an unknown key is a problem. Raises InvalidRequestError
    with the path of everything that is wrong (`source` names the file, if there is one).
    """
    decoded, problems = try_decode(value, type_, path=path)
    if decoded is None:
        raise InvalidRequestError(problems, source=source)
    return decoded


def try_decode(value: object, type_: type[S], *, path: str = "") -> tuple[S | None, list[Problem]]:
    """Like decode, but returns the problems: the value is None exactly when there are any."""
    problems: list[Problem] = []
    decoded = _decode_struct(type_, value, path, problems)
    return (None, problems) if problems else (decoded, problems)


# Decoders: functions of the value, its path, and the list that takes what is wrong with it.


def _decoder_of(type_: Any) -> _Decoder:
    """What decodes values of that type. Worked out once a struct: annotations take longer to read than a value."""
    constraints: list[msgspec.Meta] = []
    while get_origin(type_) is Annotated:
        type_, *metas = get_args(type_)
        constraints += [meta for meta in metas if isinstance(meta, msgspec.Meta)]
    origin = get_origin(type_)
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(type_) if option is not type(None)]
        if len(options) == 1:
            return functools.partial(_decode_optional, _decoder_of(_annotated(options[0], constraints)))
        return functools.partial(_decode_optional, functools.partial(_decode_leaf, _annotated(type_, constraints)))
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        return functools.partial(_decode_struct, type_)
    if origin is list:
        return functools.partial(_decode_list, _decoder_of(get_args(type_)[0]), constraints)
    if origin is dict and get_args(type_)[1] is not Any:
        return functools.partial(_decode_dict, _decoder_of(get_args(type_)[1]), constraints)
    if type_ is Secret:
        return _decode_secret
    if origin is Literal and all(isinstance(choice, str) for choice in get_args(type_)):
        return functools.partial(_decode_choice, {choice: choice for choice in get_args(type_)})
    if isinstance(type_, type) and issubclass(type_, StrEnum):
        return functools.partial(_decode_choice, {member.value: member for member in type_})
    if type_ is str or (isinstance(type_, NewType) and type_.__supertype__ is str):
        return functools.partial(_decode_text, _annotated(type_, constraints) if constraints else None)
    return functools.partial(_decode_leaf, _annotated(type_, constraints))


def _annotated(type_: Any, constraints: list[msgspec.Meta]) -> Any:
    for constraint in constraints:
        type_ = Annotated[type_, constraint]
    return type_


class _Field(NamedTuple):
    key: str
    name: str
    keeps_empty: bool
    decode: _Decoder


@functools.cache
def _fields(type_: type[msgspec.Struct]) -> tuple[dict[str, _Field], list[_Field]]:
    """All fields by their keys, and those that are required."""
    fields: dict[str, _Field] = {}
    required: list[_Field] = []
    for info in msgspec.structs.fields(type_):
        field = _Field(info.encode_name, info.name, _keeps_empty(info.type), _decoder_of(info.type))
        fields[field.key] = field
        if info.required:
            required.append(field)
    return fields, required


def _keeps_empty(type_: Any) -> bool:
    if get_origin(type_) is Annotated:
        return KEEP_EMPTY in get_args(type_)[1:]
    return any(_keeps_empty(option) for option in get_args(type_))


def _decode_optional(decode: _Decoder, value: Any, path: str, problems: list[Problem]) -> Any:
    return None if value is None else decode(value, path, problems)


def _decode_struct(type_: type[msgspec.Struct], value: Any, path: str, problems: list[Problem]) -> Any:
    if not isinstance(value, dict):
        problems.append(Problem(path, f"expected an object, got {_described(value)}"))
        return _FAILED
    before = len(problems)
    fields, required = _fields(type_)
    if not value.keys() <= fields.keys():
        for key in value:
            if key not in fields:
                problems.append(Problem(_join(path, key), f"unknown key; known here: {', '.join(fields)}"))
    values: dict[str, Any] = {}
    for key, given in value.items():
        field = fields.get(key)
        if field is not None and given is not None and (given != "" or field.keeps_empty):
            values[field.name] = field.decode(given, _join(path, key), problems)
    for field in required:
        if field.name not in values:
            problems.append(Problem(_join(path, field.key), "is required"))
    return _FAILED if len(problems) > before else type_(**values)


def _decode_list(
    decode: _Decoder, constraints: list[msgspec.Meta], value: Any, path: str, problems: list[Problem]
) -> Any:
    if not isinstance(value, list):
        problems.append(Problem(path, f"expected a list, got {_described(value)}"))
        return _FAILED
    for meta in constraints:
        if meta.min_length is not None and len(value) < meta.min_length:
            problems.append(Problem(path, "must not be empty"))
        if meta.max_length is not None and len(value) > meta.max_length:
            problems.append(Problem(path, f"has {len(value)} entries; at most {meta.max_length} are allowed"))
    return [decode(part, f"{path}[{index}]", problems) for index, part in enumerate(value)]


def _decode_dict(
    decode: _Decoder, constraints: list[msgspec.Meta], value: Any, path: str, problems: list[Problem]
) -> Any:
    if not isinstance(value, dict):
        problems.append(Problem(path, f"expected an object, got {_described(value)}"))
        return _FAILED
    for meta in constraints:
        if meta.max_length is not None and len(value) > meta.max_length:
            problems.append(Problem(path, f"has {len(value)} entries; at most {meta.max_length} are allowed"))
    return {key: decode(part, _join(path, key), problems) for key, part in value.items()}


def _decode_secret(value: Any, path: str, problems: list[Problem]) -> Any:
    if isinstance(value, str):
        return Secret(value)
    problems.append(Problem(path, f"expected a text, got {_described(value, show=False)}"))
    return _FAILED


def _decode_choice(known: Mapping[str, str], value: Any, path: str, problems: list[Problem]) -> Any:
    if isinstance(value, str) and value in known:
        return known[value]
    problems.append(Problem(path, f"{_described(value)} is not one of {', '.join(known)}"))
    return _FAILED


def _decode_text(constrained: Any, value: Any, path: str, problems: list[Problem]) -> Any:
    if isinstance(value, str):
        return value if constrained is None else _decode_leaf(constrained, value, path, problems)
    hint = "; put it in quotes" if isinstance(value, int | float) else ""
    problems.append(Problem(path, f"expected a text, got {_described(value)}{hint}"))
    return _FAILED


def _decode_leaf(type_: Any, value: Any, path: str, problems: list[Problem]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        problems.append(Problem(path, f"{value} is not a number that JSON knows"))
        return _FAILED
    try:
        with _building:
            return msgspec.convert(value, type_)
    except msgspec.ValidationError as exc:
        words = _TYPE_NAME.sub(_in_plain_words, str(exc)).replace("Expected", "expected", 1)
        problems.append(Problem(path, f"{words} (it is {_described(value)})"))
        return _FAILED


def _in_plain_words(type_name: re.Match[str]) -> str:
    return " or ".join(_TYPE_WORDS.get(part, part) for part in type_name[1].split(" | "))


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
