"""Definition files as the clients of the daemon read them: as they stand there, each value with its line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_engine.documents import SUFFIXES, Document, parse_document
from pipeline_engine.errors import InvalidRequestError, Problem
from pipeline_engine_sdk import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDefinition:
    """A definition that nobody has checked yet, the file that it is from, and where in that file it stands."""

    value: dict[str, Any]
    file: str
    path: str
    document: Document

    def located(self, path: str, message: str) -> Problem:
        """A problem of the definition, with the path and the line that it has in the file."""
        here = ".".join(part for part in (self.path, path) if part)
        return Problem(here, message, self.document.line_of(here))


def is_file(text: str) -> bool:
    """Whether the argument of a command that takes a FILE or a TYPE is a file's name."""
    return Path(text).is_file() or text.endswith(SUFFIXES) or "/" in text


def read_definitions(name: str) -> list[FileDefinition]:
    """The definitions in a file: one, a list of them, or `pipelines` with a list.

    Raises InvalidRequestError; whether they make sense is for the daemon to say.
    """
    try:
        document = parse_document(Path(name).read_bytes(), name=name)
    except OSError as exc:
        raise InvalidRequestError([Problem("", f"cannot be read: {exc.strerror}")], source=name) from exc
    path, value = "", document.value
    if isinstance(value, dict) and isinstance(value.get("pipelines"), list):
        path, value = "pipelines", value["pipelines"]
    parts = [(path, value)]
    if isinstance(value, list):
        parts = [(f"{path}[{index}]", part) for index, part in enumerate(value)]
    definitions = []
    problems = [] if parts else [Problem(path, "holds no definition")]
    for where, part in parts:
        if isinstance(part, dict):
            definitions.append(FileDefinition(value=part, file=name, path=where, document=document))
        else:
            problems.append(Problem(where, "is not a definition: expected an object"))
    if problems:
        raise InvalidRequestError(document.locate(problems), source=name)
    return definitions


def read_definition(name: str) -> FileDefinition:
    """The only definition in a file. Raises InvalidRequestError."""
    definitions = read_definitions(name)
    if len(definitions) != 1:
        problem = Problem("", f"holds {len(definitions)} definitions; one is expected")
        raise InvalidRequestError([problem], source=name)
    return definitions[0]


@contextmanager
def refusals_located(definition: FileDefinition | None, *, prefix: str = "") -> Iterator[None]:
    """What the daemon finds wrong with the definition, if there is one, in this block is told with its file and lines.

    `prefix` is where the definition stands in the request. Raises InvalidRequestError for it.
    """
    try:
        yield
    except InvalidRequest as exc:
        problems = [(one["path"], one["message"]) for one in exc.details.get("problems", ())]
        inside = f"{prefix}." if prefix else ""
        # One without a path counts those that were left out.
        is_ours = all(path in ("", prefix) or path.startswith(inside) for path, _ in problems)
        if definition is None or not problems or not is_ours:
            raise
        located = [definition.located(path.removeprefix(prefix).removeprefix("."), words) for path, words in problems]
        raise InvalidRequestError(located, source=definition.file) from exc
