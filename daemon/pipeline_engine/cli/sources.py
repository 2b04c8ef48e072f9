"""The pipeline and the sources of a job from the command line."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from pipeline_engine.cli import stdin_is_closed
from pipeline_engine.models import Source


def complete_file(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
    """Let the shell complete names of files, as it does for the part behind the `=` of a source too."""
    return [CompletionItem(incomplete, type="file")]


def input_options(command: Callable[..., None]) -> Callable[..., None]:
    """What a command takes that gives a job its input: `sources` and `options`."""
    for decorate in (
        click.option(
            "--option", "-o", "options", multiple=True, metavar="NAME=VALUE", help="An option; JSON, or else a text."
        ),
        click.option(
            "--source",
            "-s",
            "sources",
            multiple=True,
            metavar="KIND:LABEL=FILE",
            shell_complete=complete_file,
            help="An input; - is standard input.",
        ),
    ):  # the last one is the first of the help
        command = decorate(command)
    return command


def job_input(command: Callable[..., None]) -> Callable[..., None]:
    """What a command takes that starts a job: `pipeline`, `sources` and `options`."""
    argument = click.argument("pipeline", metavar="FILE-or-TYPE", shell_complete=complete_file)
    return argument(input_options(command))


def parse_sources(texts: Sequence[str]) -> list[Source]:
    """The sources, each as of parse_source. Raises click.BadParameter when standard input is to be read twice."""
    if sum(text == "-" or text.partition("=")[2] == "-" for text in texts) > 1:
        raise click.BadParameter("standard input (-) can be only one source")
    return [parse_source(text) for text in texts]


def parse_source(text: str) -> Source:
    """A source from `KIND:LABEL=FILE`, `LABEL=FILE` or `FILE`; the file `-` is standard input.

    A file with NUL bytes is taken as bytes; other bytes that are not UTF-8 are replaced, as in most logs a few of
    them do no harm. Raises click.BadParameter when the file cannot be read.
    """
    head, separator, name = text.partition("=")
    if not separator:
        head, name = "", text
    kind, separator, label = head.partition(":")
    if not separator:
        kind, label = "raw", head
    if not name:
        raise click.BadParameter(f"{text!r} names no file")
    data = _read(name)
    label = characters(label or Path(name).name)
    kind = characters(kind)
    if b"\0" in data:
        return Source(kind=kind or "raw", label=label, content_base64=base64.b64encode(data).decode())
    return Source(kind=kind or "raw", label=label, content=data.decode("utf-8", "replace"))


def _read(name: str) -> bytes:
    if name == "-" and stdin_is_closed():
        raise click.BadParameter("standard input (-) is closed")
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as exc:
        raise click.BadParameter(f"cannot read {name}: {exc.strerror}") from exc


def characters(text: str) -> str:
    """The argument without the bytes that are not UTF-8, which Python hides in it as halves of surrogate pairs."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
