"""What a call of the API consists of: its route, the request as its handler gets it, and the answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline_engine.decoding import to_json

if TYPE_CHECKING:
    from pipeline_engine.api.context import Api

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, decoded: `query` and `body` are of the route's types; `data` are the bytes of the body.

    The names of `headers` are in lower case.
    """

    path: str
    path_values: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Any = None
    body: Any = None
    data: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A response. A body that is a generator is streamed, piece by piece; it is closed whether it ended or not."""

    status: int = 200
    content_type: str | None = None
    body: bytes | AsyncGenerator[bytes, None] = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def json_answer(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """The value as JSON, secrets hidden."""
    return Answer(status=status, content_type=JSON, body=to_json(value), headers=headers or {})


def text_answer(text: str, *, content_type: str = TEXT) -> Answer:
    return Answer(content_type=content_type, body=text.encode())


class NoQuery(msgspec.Struct, frozen=True):
    """The query of a call that knows no parameters."""


Handler = Callable[["Api", Call], Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One call of the API, as the router and the OpenAPI document need it.

    The name of the handler is that of the operation, and `tag` the group it stands in. `path` has its variables in
    braces. `query` is a struct whose fields are the parameters; `headers` are those that
    the handler reads, with a description each. `body` is the type of the JSON body; where `decodes_body` is False the
    handler gets its plain value. `answers` tells, for each status of success, what the body is: a type for JSON, a
    media type for other bodies, a tuple where there is a choice, None for none. `errors` are the codes besides those
    that any such call may give.
    """

    method: str
    path: str
    handler: Handler
    tag: str
    summary: str
    description: str = ""
    answers: Mapping[int, Any]
    query: type[msgspec.Struct] = NoQuery
    headers: Mapping[str, str] = field(default_factory=dict)
    body: type[msgspec.Struct] | None = None
    decodes_body: bool = True
    body_optional: bool = False
    errors: Sequence[str] = ()
    is_stream: bool = False
    needs_engine: bool = True
