"""Clients of the MCP server, and what their tests share."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.types import CallToolResult, TextContent
from tests.daemon_process import PATIENCE

from pipeline_engine.mcp_server.files import FileAccess
from pipeline_engine.mcp_server.server import make_server
from pipeline_engine_sdk import AsyncPipelineEngineClient, Job

COMMAND = [sys.executable, "-X", "warn_default_encoding", "-m", "pipeline_engine", "mcp"]
WORDS = {"pipeline_type": "words.v1", "sources": [{"content": "a"}, {"content": "b"}]}
SLOW = {"pipeline_type": "shell.v1", "options": {"script": "sleep 60"}}


@asynccontextmanager
async def agent_in_process(
    engine: AsyncPipelineEngineClient, *directories: Path, read_only: bool = False
) -> AsyncIterator[Client]:
    """A client of a server in this process: starting one takes two seconds, most of them for the library's types."""
    with trio.fail_after(PATIENCE):
        async with Client(make_server(engine, FileAccess(directories), read_only=read_only)) as client:
            yield client


@asynccontextmanager
async def agent_over_stdio(url: str, *arguments: str, mode: str = "auto") -> AsyncIterator[Client]:
    """A client of `pipeline-engine mcp`, which is a client of the daemon at that address."""
    parameters = StdioServerParameters(
        command=COMMAND[0], args=[*COMMAND[1:], *arguments], env={"PIPELINE_ENGINE_URL": url}
    )
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        with trio.fail_after(2 * PATIENCE):
            async with Client(stdio_client(parameters, errlog=log), mode=mode) as client:
                yield client
        log.seek(0)
        assert "Traceback" not in log.read()


async def call(agent: Client, tool: str, **arguments: Any) -> Any:
    """The structured output of a call that went well."""
    result = await agent.call_tool(tool, arguments)
    assert not result.is_error, result
    return result.structured_content


def text_of(result: CallToolResult) -> str:
    [content] = result.content
    assert isinstance(content, TextContent)
    return content.text


async def running_job(engine: AsyncPipelineEngineClient, label: str) -> Job:
    """The job with the label `of` of that value, once it runs."""
    with trio.fail_after(PATIENCE):
        while True:
            jobs = (await engine.list_jobs(labels={"of": label}, status="running")).jobs
            if jobs:
                return jobs[0]
            await trio.sleep(0.02)
