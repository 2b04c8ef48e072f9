"""`pipeline-engine mcp`: the daemon's pipelines and jobs for agents, over the Model Context Protocol."""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path

import click
import trio

from pipeline_engine.cli import stdin_is_closed
from pipeline_engine.cli.client import EXIT_REFUSED, fail
from pipeline_engine_sdk import AsyncPipelineEngineClient, PipelineEngineError


@click.command()
@click.option(
    "--url", metavar="URL", help="The daemon: http://HOST:PORT or unix:/path; else that of PIPELINE_ENGINE_URL."
)
@click.option(
    "--allow-files",
    "directories",
    multiple=True,
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Sources may name files below this directory; without this option none may.",
)
@click.option("--read-only", is_flag=True, help="Offer only the tools that change nothing and start nothing.")
def command(url: str | None, directories: tuple[Path, ...], read_only: bool) -> None:
    """Serve an agent or an editor over standard input and output, until it closes them.

    Such programs start this command themselves: docs/mcp.md has their settings. It is a client of the daemon, which may
    be started before or after. Exit codes: 0 the client has left, 2 usage, or the extra `mcp` is not installed.
    """
    if stdin_is_closed():
        raise click.UsageError(
            "standard input is closed: an agent or an editor starts this command, and speaks to it there"
        )
    try:
        from pipeline_engine.mcp_server.files import FileAccess  # noqa: PLC0415 - the extra may be missing
        from pipeline_engine.mcp_server.server import serve  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        if exc.name is not None and exc.name.startswith("pipeline_engine"):
            raise
        words = f"the module {exc.name!r} is missing; install the MCP server with: pip install 'pipeline-engine[mcp]'"
        fail(words, EXIT_REFUSED)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="pipeline-engine mcp: %(message)s")
    try:
        client = AsyncPipelineEngineClient(url)
    except PipelineEngineError as exc:
        fail(exc.message, EXIT_REFUSED)
    trio.run(partial(serve, client, FileAccess(directories), read_only=read_only))
