"""`pipeline-engine pipelines`: list, show, validate, draw, put and delete definitions."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click
import yaml

from pipeline_engine.cli.client import (
    EXIT_REFUSED,
    client_options,
    open_client,
    print_json,
    print_table,
)
from pipeline_engine.cli.definition_files import (
    FileDefinition,
    is_file,
    read_definition,
    read_definitions,
    refusals_located,
)
from pipeline_engine.cli.display import printable
from pipeline_engine.cli.sources import complete_file
from pipeline_engine.decoding import try_decode
from pipeline_engine.definitions import decode_definition, explain_overrides
from pipeline_engine.diagrams import to_dot, to_mermaid
from pipeline_engine.errors import InvalidRequestError, Problem
from pipeline_engine.models import PipelineDef
from pipeline_engine.pipeline import Graph, check
from pipeline_engine_sdk import PipelineDef as Definition
from pipeline_engine_sdk import PipelineEngineClient


@click.group()
def command() -> None:
    """The definitions that the daemon knows."""


@command.command("list")
@client_options
def list_pipelines(url: str | None, as_json: bool) -> None:
    """List the pipelines that jobs can name, and the definition files that cannot be used."""
    with open_client(url) as client:
        pipelines, broken_files = client.list_pipelines(), client.list_broken_files()
    if as_json:
        print_json({"pipelines": pipelines, "broken_files": broken_files})
    else:
        rows = [(one.type, one.version, len(one.steps), one.description or "") for one in pipelines]
        print_table(("PIPELINE", "VERSION", "STEPS", "DESCRIPTION"), rows)
        for words in broken_files:
            click.echo(printable(f"not in force: {words}"), err=True)


@command.command("show")
@click.argument("pipeline_type", metavar="TYPE")
@client_options
def show_pipeline(pipeline_type: str, url: str | None, as_json: bool) -> None:
    """Show a definition, as YAML."""
    with open_client(url) as client:
        definition = client.get_pipeline(pipeline_type)
    if as_json:
        print_json(definition)
    else:
        click.echo(printable(to_yaml(definition.to_dict())), nl=False)


@command.command("validate")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, shell_complete=complete_file)
@client_options
def validate_pipelines(files: tuple[str, ...], url: str | None, as_json: bool) -> None:
    """Check definition files with what the daemon knows: its profiles, handlers and limits. Stores nothing.

    Exit codes: 0 all are sound, 2 one is not, 3 the daemon cannot be reached.
    """
    with open_client(url) as client:
        results = [result for file in files for result in _validate(client, file)]
    if as_json:
        print_json({"results": results})
    else:
        for result in results:
            of_type = f": {result['type']}" if result["type"] else ""
            click.echo(printable(f"{result['file']}{of_type}: {'ok' if result['valid'] else 'not valid'}"))
            for problem in result["errors"]:
                click.echo(printable(f"{result['file']}: {Problem(**problem)}"))
    sys.exit(0 if all(result["valid"] for result in results) else EXIT_REFUSED)


def _validate(client: PipelineEngineClient, file: str) -> Iterator[dict[str, Any]]:
    """What is said of each definition in the file; of one that cannot be read, why not."""
    try:
        definitions = read_definitions(file)
    except InvalidRequestError as exc:
        yield _verdict(file, None, exc.problems)
        return
    for definition in definitions:
        errors = client.validate_pipeline(definition.value).errors
        problems = [definition.located(error.path, error.message) for error in errors]
        yield _verdict(file, definition.value.get("type"), problems)


def _verdict(file: str, type_: object, problems: Sequence[Problem]) -> dict[str, Any]:
    errors = [{"path": one.path, "message": one.message, "line": one.line} for one in problems]
    return {"file": file, "type": type_, "valid": not errors, "errors": errors}


@command.command("graph")
@click.argument("pipeline", metavar="TYPE-or-FILE", shell_complete=complete_file)
@click.option(
    "--format", "format_", type=click.Choice(["mermaid", "dot", "text"]), default="mermaid", show_default=True
)
@client_options
def draw_pipeline(pipeline: str, format_: str, url: str | None, as_json: bool) -> None:
    """Draw a definition: for Mermaid, for Graphviz, or as text. A FILE is drawn without a daemon."""
    if is_file(pipeline):
        definition = _read_sound(pipeline)
    else:
        with open_client(url) as client:
            definition = decode_definition(client.get_pipeline(pipeline).to_dict(), source=pipeline)
    draw = {"mermaid": to_mermaid, "dot": to_dot, "text": to_text}[format_]
    drawing = draw(definition)
    if as_json:
        print_json({"format": format_, "graph": drawing})
    else:
        click.echo(printable(drawing), nl=False)


def _read_sound(file: str) -> PipelineDef:
    """The definition in the file, when its steps make a graph. Raises InvalidRequestError."""
    read = read_definition(file)
    definition, problems = try_decode(read.value, PipelineDef)
    problems = explain_overrides(problems) if definition is None else check(definition)
    if definition is None or problems:
        raise InvalidRequestError([read.located(one.path, one.message) for one in problems], source=file)
    return definition


@command.command("put")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, shell_complete=complete_file)
@client_options
def put_pipelines(files: tuple[str, ...], url: str | None, as_json: bool) -> None:
    """Register the definitions of files with the daemon, or replace them."""
    with open_client(url) as client:
        stored = [_put(client, definition) for file in files for definition in read_definitions(file)]
    if as_json:
        print_json({"pipelines": stored})
    else:
        for one in stored:
            click.echo(printable(f"{one.type} {one.version}"))


def _put(client: PipelineEngineClient, definition: FileDefinition) -> Definition:
    if not isinstance(definition.value.get("type"), str):
        raise InvalidRequestError([definition.located("type", "is required, as a text")], source=definition.file)
    with refusals_located(definition):
        return client.put_pipeline(definition.value)


@command.command("delete")
@click.argument("pipeline_type", metavar="TYPE")
@client_options
def delete_pipeline(pipeline_type: str, url: str | None, as_json: bool) -> None:
    """Remove a definition that was put."""
    with open_client(url) as client:
        client.delete_pipeline(pipeline_type)
    if as_json:
        print_json({"deleted": pipeline_type})


def to_yaml(value: object) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
    return text


def to_text(definition: PipelineDef) -> str:
    """The graph of the definition as text: each step below those that it depends on, which it names."""
    graph = Graph(definition)
    steps = {step.id: step for step in definition.steps}
    lines = [f"graph of {definition.type}"]
    for step_id in graph.order:
        step = steps[step_id]
        depth = len(graph.ancestors(step_id))
        needs = f"  <- {', '.join(step.depends_on)}" if step.depends_on else ""
        mark = " *" if step.export else ""
        lines.append(f"{'  ' * min(depth, 20)}{step_id} [{step.kind}, {step.mode}]{mark}{needs}")
    return "\n".join(lines) + "\n"
