"""The pipeline and the sources of a job from the command line."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import escape, glob, has_magic
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
            help="An input; - is standard input, '*.log' each such file.",
        ),
    ):  # the last one is the first of the help
        command = decorate(command)
    return command


def job_input(command: Callable[..., None]) -> Callable[..., None]:
    """What a command takes that starts a job: `pipeline`, `sources` and `options`."""
    argument = click.argument("pipeline", metavar="FILE-or-TYPE", shell_complete=complete_file)
    return argument(input_options(command))


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A file to read, and what its source is called; the file `-` is standard input."""

    name: str
    kind: str
    label: str


def parse_sources(texts: Sequence[str]) -> list[Source]:
    """The sources of `KIND:LABEL=FILE`, `LABEL=FILE`, `KIND:FILE` or `FILE`; the file `-` is standard input.

    Where FILE is a pattern, each file that it fits is a source, in the order of their names. A file with NUL bytes is
    taken as bytes; other bytes that are not UTF-8 are replaced, as in most logs a few of them do no harm. Raises
    click.BadParameter for what cannot be read, and when standard input is to be read twice.
    """
    files = [file for text in texts for file in _files(text)]
    if sum(file.name == "-" for file in files) > 1:
        raise click.BadParameter("standard input (-) can be only one source")
    return [_source(file) for file in files]


def _files(text: str) -> list[_File]:
    head, separator, name = text.partition("=")
    kind, colon, label = head.partition(":")
    if separator:
        kind, label = (kind, label) if colon else ("", head)
    elif colon and "/" not in kind and not _is_there(text):  # a file's name may have a colon
        name, label = label, ""
        if name and not has_magic(name) and not _is_there(name):
            words = f"there is neither a file {text} nor, as a source of the kind {kind!r}, a file {name}"
            raise click.BadParameter(f"{words}; in full a source is KIND:LABEL=FILE")
    else:
        name, kind, label = text, "", ""
    if not name:
        raise click.BadParameter(f"{text!r} names no file")
    path = _path(name)
    if not _is_pattern(path):
        return [_File(name=path, kind=kind, label=label or Path(path).name)]
    paths = _fitting(path)
    if not paths:
        raise click.BadParameter(f"no file fits {path}")
    # What they have in common tells them not apart.
    certain = len(Path(_folder_of(path)).parts)
    start = next(place for place, part in enumerate(Path(path).parts) if place >= certain and has_magic(part))
    labels = ["/".join(([label] if label else []) + list(Path(one).parts[start:])) for one in paths]
    return [_File(name=one, kind=kind, label=own) for one, own in zip(paths, labels, strict=True)]


def _path(name: str) -> str:
    """The name with its `~` expanded, which most shells leave to us behind a `=`."""
    return name if os.path.lexists(name) else os.path.expanduser(name)  # noqa: PTH111 - leaves an unknown ~name alone


def _is_pattern(path: str) -> bool:
    """A name that is there is none, whatever is in it."""
    return has_magic(path) and not os.path.lexists(path)


def _fitting(pattern: str) -> list[str]:
    """The files that the pattern fits, in order."""
    folder = _folder_of(pattern)
    pattern = escape(folder) + pattern[len(folder) :]
    return sorted(filter(os.path.isfile, glob(pattern, recursive=True)))  # noqa: PTH207 - Path.glob takes no absolute one


def _folder_of(pattern: str) -> str:
    """The longest beginning of the pattern that is a folder as it is written: no part of it is a pattern."""
    ends = (end for end in range(len(pattern) - 1, 0, -1) if pattern[end] == "/")
    return next((pattern[:end] for end in ends if os.path.lexists(pattern[:end])), "")


def _is_there(name: str) -> bool:
    path = _path(name)
    return path == "-" or os.path.lexists(path) or (has_magic(path) and bool(_fitting(path)))


def _source(file: _File) -> Source:
    data = _read(file.name)
    kind, label = characters(file.kind or "raw"), characters(file.label)
    if b"\0" in data:
        return Source(kind=kind, label=label, content_base64=base64.b64encode(data).decode())
    return Source(kind=kind, label=label, content=data.decode("utf-8", "replace"))


def _read(name: str) -> bytes:
    if name == "-" and stdin_is_closed():
        raise click.BadParameter("standard input (-) is closed")
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except IsADirectoryError as exc:
        raise click.BadParameter(f"{name} is a folder; for its files write {str(Path(name, '*'))!r}") from exc
    except OSError as exc:
        raise click.BadParameter(f"cannot read {name}: {exc.strerror}") from exc


def characters(text: str) -> str:
    """The argument without the bytes that are not UTF-8, which Python hides in it as halves of surrogate pairs."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
