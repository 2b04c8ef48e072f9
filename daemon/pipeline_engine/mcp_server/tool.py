"""What a tool is: its name and schemas, and a function of decoded arguments that answers with a struct."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from mcp.types import ContentBlock, ToolAnnotations
from mcp.types import Tool as ToolDescription

from pipeline_engine.decoding import decode
from pipeline_engine.jsontext import JsonTextError, loads_strict
from pipeline_engine.mcp_server.files import FileAccess
from pipeline_engine_sdk import AsyncPipelineEngineClient

#: Of a tool that changes nothing and starts nothing.
READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)


class Arguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of all arguments; null and an empty text mean that one is not given."""


class Output(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The base of all structured outputs; what has its default value is left out."""


A = TypeVar("A", bound=Arguments)
A_contra = TypeVar("A_contra", bound=Arguments, contravariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a tool answers; `content` comes beside the output, which is given as text too."""

    output: Output
    content: tuple[ContentBlock, ...] = ()
    is_error: bool = False


class Report(Protocol):
    """Tells the client how far a call is."""

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a call of a tool may use."""

    client: AsyncPipelineEngineClient
    files: FileAccess
    report: Report


class Function(Protocol[A_contra]):
    """The code of a tool."""

    def __call__(self, call: Call, arguments: A_contra, /) -> Awaitable[Answer]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool(Generic[A]):
    """A tool; the hints in `annotations` are those that clients decide by whether to ask a person first."""

    title: str
    description: str
    arguments: type[A]
    output: type[Output]
    annotations: ToolAnnotations
    function: Function[A]

    @property
    def name(self) -> str:
        name: str = self.function.__name__  # type: ignore[attr-defined]  # all are functions
        return name

    @property
    def only_reads(self) -> bool:
        return bool(self.annotations.read_only_hint)

    async def call(self, call: Call, arguments: Mapping[str, Any]) -> Answer:
        """Raises InvalidRequestError for wrong arguments, and the errors of the SDK."""
        return await self.function(call, decode(self._parsed(arguments), self.arguments))

    def describe(self, adapt: Callable[[dict[str, Any]], dict[str, Any]]) -> ToolDescription:
        """The tool as clients see it; `adapt` may change the schema of its arguments."""
        return ToolDescription(
            name=self.name,
            title=self.title,
            description=self.description,
            input_schema=adapt(schema_of(self.arguments)),
            output_schema=schema_of(self.output),
            annotations=self.annotations,
        )

    def _parsed(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments; some clients send objects and lists as JSON texts."""
        properties = schema_of(self.arguments)["properties"]
        return {
            name: _parse(value) if properties.get(name, {}).get("type") in ("object", "array") else value
            for name, value in arguments.items()
        }


def _parse(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return loads_strict(value)
    except JsonTextError:
        return value  # decoding says what is wrong with it


def schema_of(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON Schema of a struct, with an object at its root, as MCP wants it."""
    schema = msgspec.json.schema(struct)
    definitions: dict[str, Any] = schema["$defs"]
    root: dict[str, Any] = definitions.pop(schema["$ref"].rpartition("/")[2])
    return {**root, "$defs": definitions} if definitions else root
