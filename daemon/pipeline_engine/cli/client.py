"""What the commands that are clients of the daemon share: the connection, its errors, and how they print."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import click
import msgspec

from pipeline_engine.cli.display import printable
from pipeline_engine_sdk import ConnectionFailed, PipelineEngineClient, PipelineEngineError, Unauthorized

EXIT_REFUSED = 2
EXIT_UNREACHABLE = 3
EXIT_CANCELLED = 130
HTTPS_HINT = "the daemon itself speaks plain http; https is for a proxy before it"
START_HINT = "start it with `pipeline-engine serve`, or name another with --url or PIPELINE_ENGINE_URL"
EXIT_CODES = {"succeeded": 0, "failed": 1, "cancelled": EXIT_CANCELLED}

F = TypeVar("F", bound=Callable[..., Any])


def client_options(function: F) -> F:
    """The options that every client command has: --url, --json."""
    function = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)
    return click.option(
        "--url", metavar="URL", help="The daemon: http://HOST:PORT or unix:/path; else that of PIPELINE_ENGINE_URL."
    )(function)


@contextmanager
def open_client(url: str | None) -> Iterator[PipelineEngineClient]:
    """A client of the daemon. What goes wrong in the block ends the program with a message and its exit code."""
    try:
        with PipelineEngineClient(url) as client:
            yield client
    except ConnectionFailed as exc:
        is_https = (url or os.environ.get("PIPELINE_ENGINE_URL", "")).startswith("https:")
        fail(f"{exc.message}; {HTTPS_HINT if is_https else START_HINT}", EXIT_UNREACHABLE)
    except Unauthorized as exc:
        fail(f"{exc.message}; {_key_hint(url)}", EXIT_REFUSED)
    except PipelineEngineError as exc:
        fail(exc.message, EXIT_REFUSED)


def _key_hint(url: str | None) -> str:
    """Why the daemon has got no key, or a wrong one: see `find_target` of the SDK for what is sent where."""
    has_key = any(os.environ.get(f"PIPELINE_ENGINE_API_KEY{suffix}") for suffix in ("", "_FILE"))
    if url is not None:
        words = "the environment's key is not sent to an address of --url; name it in PIPELINE_ENGINE_URL"
        return words if has_key else f"{words}, and the key in PIPELINE_ENGINE_API_KEY"
    if has_key:
        return "the key that was sent, of PIPELINE_ENGINE_API_KEY or PIPELINE_ENGINE_API_KEY_FILE, is wrong"
    return "set PIPELINE_ENGINE_API_KEY or PIPELINE_ENGINE_API_KEY_FILE"


def fail(message: str, code: int) -> NoReturn:
    """End the program with a message."""
    click.echo(printable(f"pipeline-engine: {message}"), err=True)
    sys.exit(code)


def print_json(value: object, *, err: bool = False) -> None:
    stream = sys.stderr if err else sys.stdout
    stream.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as their widest cell: an id that is cut could not be used."""
    cells = [list(titles), *([printable(str(cell)).replace("\n", " ") for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
