"""`pipeline-engine submit`: a job for the daemon."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import msgspec

from pipeline_engine.cli.client import (
    EXIT_CANCELLED,
    EXIT_CODES,
    EXIT_REFUSED,
    client_options,
    fail,
    open_client,
    print_json,
)
from pipeline_engine.cli.definition_files import FileDefinition, is_file, read_definition, refusals_located
from pipeline_engine.cli.follow import choose_display, print_results, show_events
from pipeline_engine.cli.likely_mistakes import warn_of_mistakes
from pipeline_engine.cli.options import find_schema, option_values, parse_label, parse_options, text_told
from pipeline_engine.cli.sources import job_input, parse_sources
from pipeline_engine.decoding import try_decode
from pipeline_engine.models import PipelineDef
from pipeline_engine_sdk import Job, NotFound, PayloadTooLarge, PipelineEngineClient


@click.command()
@job_input
@click.option("--label", "-l", "labels", multiple=True, metavar="NAME=VALUE", help="A label to find the job by.")
@click.option("--priority", type=click.IntRange(-100, 100), default=0, help="Higher runs earlier.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), help="Seconds the job may take.")
@click.option("--dry-run", is_flag=True, help="Render the prompts and walk the steps, but call nobody.")
@click.option("--key", metavar="KEY", help="An idempotency key: submitted again, it is the same job.")
@click.option("--follow", "-f", "follows", is_flag=True, help="Show the job as it runs, and print its results.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@client_options
def command(
    pipeline: str,
    sources: tuple[str, ...],
    options: tuple[str, ...],
    labels: tuple[str, ...],
    priority: int,
    timeout_s: float | None,
    dry_run: bool,
    key: str | None,
    follows: bool,
    quiet: bool,
    url: str | None,
    as_json: bool,
) -> None:
    """Submit a job: the TYPE of a pipeline that the daemon knows, or a definition FILE. Prints the job's id.

    With --follow Ctrl-C cancels the job. Exit codes: 0 ok, 1 the job failed, 2 usage or refused, 3 the daemon cannot be
    reached, 130 cancelled.
    """
    written = parse_options(options)
    request: dict[str, Any] = {
        "input": {"sources": msgspec.to_builtins(parse_sources(sources))},
        "labels": dict(parse_label(text) for text in labels),
        "priority": priority,
        "timeout_s": timeout_s,
        "dry_run": dry_run,
    }
    definition = read_definition(pipeline) if is_file(pipeline) else None
    if definition is not None:
        request["pipeline"] = definition.value
    else:
        request["pipeline_type"] = pipeline
    with open_client(url) as client:
        schema = (
            find_schema(client, pipeline, written) if definition is None else definition.value.get("options_schema")
        )
        request["input"]["options"] = option_values(written, schema)
        with refusals_located(definition, prefix="pipeline"), _size_told(request), text_told(written):
            job = client.create_job(request, idempotency_key=key)
        if follows or not sources:
            _warn_of_mistakes(client, pipeline, definition, has_sources=bool(sources))
        if follows:
            job = _follow(client, job, quiet=quiet or as_json)
    if as_json:
        print_json({"job": job})
    elif follows:
        print_results(job, url=url)
    else:
        click.echo(job.id)
    if follows:
        sys.exit(EXIT_CODES[job.status])


@contextmanager
def _size_told(request: dict[str, Any]) -> Iterator[None]:
    """A job that is too large for the daemon is refused with its size, and what can be done."""
    try:
        yield
    except PayloadTooLarge as exc:
        size = len(msgspec.json.encode(request))
        words = f"the job has {size} bytes, but {exc.message} (limits.max_body_bytes of the daemon)"
        fail(f"{words}; `pipeline-engine run` has no such limit", EXIT_REFUSED)


def _warn_of_mistakes(
    client: PipelineEngineClient, pipeline: str, given: FileDefinition | None, *, has_sources: bool
) -> None:
    try:
        value = client.get_pipeline(pipeline).to_dict() if given is None else given.value
    except NotFound:  # removed meanwhile
        return
    definition, _ = try_decode(value, PipelineDef)
    if definition is not None:  # else the daemon is newer than this command
        warn_of_mistakes(definition, has_sources=has_sources)


def _follow(client: PipelineEngineClient, job: Job, *, quiet: bool) -> Job:
    """The job at its end; the first Ctrl-C cancels it, a second one does not wait for that."""
    try:
        try:
            show_events(client.follow_job(job.id), choose_display(quiet=quiet))
        except KeyboardInterrupt:
            return client.cancel_job(job.id, reason="cancelled by the user")
        return client.get_job(job.id)
    except KeyboardInterrupt:
        sys.exit(EXIT_CANCELLED)
