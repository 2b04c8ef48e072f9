"""The MCP server itself: it puts tools and resources behind the library's protocol, and runs until its client leaves."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import trio
from mcp import MCPError
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    TextContent,
)

from pipeline_engine import __version__
from pipeline_engine.errors import InvalidRequestError
from pipeline_engine.jsontext import dumps_compact
from pipeline_engine.mcp_server import job_tools, pipeline_tools, resources
from pipeline_engine.mcp_server.bounds import cut_text, cut_value
from pipeline_engine.mcp_server.files import FileAccess
from pipeline_engine.mcp_server.tool import Answer, Call, Tool
from pipeline_engine.mcp_server.views import to_plain
from pipeline_engine_sdk import AsyncPipelineEngineClient, ConnectionFailed, PipelineEngineError, Unauthorized

TOOLS: tuple[Tool[Any], ...] = (*pipeline_tools.TOOLS, *job_tools.TOOLS)

INSTRUCTIONS = """\
Pipeline Engine runs pipelines of AI steps on this machine: calls of models and programs, and transformations between \
them. list_pipelines shows which there are. run_pipeline runs one on your input and answers with its results. For jobs \
of more than a minute use submit_job, then get_job with wait_s. Long texts are cut; get_items gives the rest. A failed \
job tells its error; get_job_events shows how it came to that, and rerun_job goes on from there."""

LONGEST_MESSAGE = 4_000  # characters of an error

logger = logging.getLogger(__name__)


class _Input(anyio.AsyncFile[str]):
    """Standard input. A signal does not wait for its next line, as it would with the library's own reader."""

    def __init__(self) -> None:
        # Never closed: that would wait for the thread that reads.
        super().__init__(open(0, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115
        self._thread = trio.CapacityLimiter(1)

    async def readline(self) -> str:
        return await trio.to_thread.run_sync(self.wrapped.readline, abandon_on_cancel=True, limiter=self._thread)


async def serve(client: AsyncPipelineEngineClient, files: FileAccess, *, read_only: bool) -> None:
    """Serve the client at standard input and output until it leaves, or until SIGTERM or SIGINT."""
    server = make_server(client, files, read_only=read_only)
    try:
        # In this block, what anything else prints goes to standard error: the library sees to that.
        async with _until_signal(), client, stdio_server(stdin=_Input()) as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())
    except* BrokenPipeError:
        logger.warning("the client has closed standard output")


@asynccontextmanager
async def _until_signal() -> AsyncIterator[None]:
    """Cancel the block on SIGTERM and SIGINT."""
    async with trio.open_nursery() as nursery:
        await nursery.start(_wait_for_signal, nursery.cancel_scope)
        yield
        nursery.cancel_scope.cancel()


async def _wait_for_signal(scope: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


def make_server(client: AsyncPipelineEngineClient, files: FileAccess, *, read_only: bool) -> Server[Any]:
    """The server with all tools, or with those alone that change nothing."""
    tools = {tool.name: tool for tool in TOOLS if tool.only_reads or not read_only}

    def adapt(schema: dict[str, Any]) -> dict[str, Any]:
        if not files.is_allowed and (source := schema.get("$defs", {}).get("SourceArgument")):
            del source["properties"]["path"]  # what would only be refused is not offered
        return schema

    descriptions = [tool.describe(adapt) for tool in tools.values()]

    async def list_tools(_: ServerRequestContext[Any], __: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=descriptions)

    async def call_tool(context: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        tool = tools.get(params.name)
        if tool is None:
            raise MCPError(INVALID_PARAMS, f"There is no tool {params.name!r}; there are {', '.join(tools)}")
        call = Call(client=client, files=files, report=context.session.report_progress)
        try:
            return _result_of(await tool.call(call, params.arguments or {}))
        except InvalidRequestError as exc:
            return _failure(exc.message)
        except PipelineEngineError as exc:
            return _failure(describe_error(exc))

    async def list_resources(_: ServerRequestContext[Any], __: PaginatedRequestParams | None) -> ListResourcesResult:
        try:
            return ListResourcesResult(resources=await resources.list_resources(client))
        except PipelineEngineError as exc:
            # Clients ask for the list when they connect, and some give up a server that answers with an error.
            logger.warning("%s", describe_error(exc))
            return ListResourcesResult(resources=[])

    async def list_templates(
        _: ServerRequestContext[Any], __: PaginatedRequestParams | None
    ) -> ListResourceTemplatesResult:
        return ListResourceTemplatesResult(resource_templates=list(resources.TEMPLATES))

    async def read_resource(_: ServerRequestContext[Any], params: ReadResourceRequestParams) -> ReadResourceResult:
        try:
            return await resources.read_resource(client, params.uri)
        except InvalidRequestError as exc:
            raise MCPError(INVALID_PARAMS, exc.message, {"uri": params.uri}) from exc
        except PipelineEngineError as exc:
            code = INVALID_PARAMS if exc.status == 404 else INTERNAL_ERROR
            raise MCPError(code, describe_error(exc), {"uri": params.uri}) from exc

    return Server(
        "pipeline-engine",
        version=__version__,
        title="Pipeline Engine",
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
    )


def _result_of(answer: Answer) -> CallToolResult:
    value = to_plain(answer.output)
    text = TextContent(type="text", text=dumps_compact(value))
    return CallToolResult(content=[text, *answer.content], structured_content=value, is_error=answer.is_error)


def _failure(message: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=cut_text(message, LONGEST_MESSAGE))], is_error=True)


def describe_error(error: PipelineEngineError) -> str:
    """What went wrong, and what can be done about it."""
    words = error.message
    if isinstance(error, ConnectionFailed):
        words += (
            ". No daemon can be reached: start it with `pipeline-engine serve`, or set PIPELINE_ENGINE_URL in the "
            "environment of this MCP server to the address of another (http://HOST:PORT or unix:/path), and try again."
        )
    elif isinstance(error, Unauthorized):
        words += ". Set PIPELINE_ENGINE_API_KEY or PIPELINE_ENGINE_API_KEY_FILE in the environment of this MCP server."
    elif error.details:
        words += f"\n{dumps_compact({'code': error.code, 'details': cut_value(error.details)})}"
    if error.job_id and error.job_id not in words:
        words += f"\nThe job is {error.job_id}."
    return words
