"""`pipeline-engine jobs`: list, show, cancel, rerun, delete, and a live view."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice

import click
import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline_engine.cli.client import (
    EXIT_CANCELLED,
    client_options,
    open_client,
    print_json,
    print_table,
)
from pipeline_engine.cli.display import print_error, print_item_errors, print_items, printable, why_skipped
from pipeline_engine.cli.job_ids import find_job_id, find_job_ids
from pipeline_engine.cli.options import find_schema, option_values, parse_label, parse_options, text_told
from pipeline_engine.cli.sources import input_options, parse_sources
from pipeline_engine_sdk import Job, PipelineEngineClient, StepExecution, parse_timestamp

STATUSES = ("queued", "running", "succeeded", "failed", "cancelled")
LARGEST_PAGE = 500
TOP_INTERVAL = 1.0  # seconds


@click.group()
def command() -> None:
    """The jobs of the daemon."""


@command.command("list")
@click.option("--status", type=click.Choice(STATUSES), help="Only jobs in this status.")
@click.option("--type", "pipeline_type", metavar="TYPE", help="Only jobs of this pipeline.")
@click.option("--label", "-l", "labels", multiple=True, metavar="NAME=VALUE", help="Only jobs with this label.")
@click.option("--limit", "-n", type=click.IntRange(min=1), default=20, show_default=True, help="How many, at most.")
@client_options
def list_jobs(
    status: str | None, pipeline_type: str | None, labels: tuple[str, ...], limit: int, url: str | None, as_json: bool
) -> None:
    """List jobs, newest first."""
    wanted = dict(parse_label(text) for text in labels)
    with open_client(url) as client:
        found = client.iterate_jobs(
            status=status, pipeline_type=pipeline_type, labels=wanted, page_size=min(limit, LARGEST_PAGE)
        )
        jobs = list(islice(found, limit))
    if as_json:
        print_json({"jobs": jobs})
    else:
        rows = [(job.id, job.status, job.pipeline_type, job.created_at[:19] + "Z", _duration(job)) for job in jobs]
        print_table(("JOB", "STATUS", "PIPELINE", "CREATED", "SECONDS"), rows)


@command.command("show")
@click.argument("job_id", metavar="JOB")
@client_options
def show_job(job_id: str, url: str | None, as_json: bool) -> None:
    """Show a job: its steps, its results, why it failed."""
    with open_client(url) as client:
        job = client.get_job(find_job_id(client, job_id))
    if as_json:
        print_json({"job": job})
        return
    parts = [job.id, job.status, printable(job.pipeline_type)]
    if duration := _duration(job):
        parts.append(f"{duration} s")
    # A call that was cut short was never counted: no number is better than 0.
    if job.usage.prompt_tokens or job.usage.completion_tokens:
        parts.append(f"{job.usage.prompt_tokens} + {job.usage.completion_tokens} tokens")
    click.echo("  ".join(parts) + "\n")
    rows = [
        (
            step.name or step.step_id,
            step.status,
            f"{step.items_done}/{step.items_total or 0}",
            step.attempts,
            why_skipped(step.to_dict()) or _left_out(step),
        )
        for step in job.step_executions or ()
    ]
    print_table(("STEP", "STATUS", "ITEMS", "ATTEMPTS", "NOTE"), rows)
    for step in job.step_executions or ():
        if step.errors:
            click.echo(f"\n{printable(step.name or step.step_id)}:")
            print_item_errors([error.to_dict() for error in step.errors], stream=sys.stdout)
    if job.result is not None and job.result.items:
        click.echo()
        print_items([item.to_dict() for item in job.result.items], console=None, stream=sys.stdout)
    if job.error is not None:
        print_error(job.error.to_dict(), status=job.status, stream=sys.stderr)


@command.command("cancel")
@click.argument("job_id", metavar="JOB")
@click.option("--reason", default="by `jobs cancel`", show_default=True, help="Why; it stands in the job's error.")
@client_options
def cancel_job(job_id: str, reason: str, url: str | None, as_json: bool) -> None:
    """Cancel a job. A finished one stays as it is."""
    with open_client(url) as client:
        _print_job(client.cancel_job(find_job_id(client, job_id), reason=reason), as_json=as_json)


@command.command("rerun")
@click.argument("job_id", metavar="JOB")
@click.option("--from-step", "from_step_id", metavar="STEP", help="Run this step and what depends on it.")
@click.option("--reuse-upstream", is_flag=True, help="Take over what has succeeded.")
@click.option(
    "--pipeline", type=click.Choice(["latest", "same"]), default="latest", help="The definition as it is, or was."
)
@input_options
@client_options
def rerun_job(
    job_id: str,
    from_step_id: str | None,
    reuse_upstream: bool,
    pipeline: str,
    sources: tuple[str, ...],
    options: tuple[str, ...],
    url: str | None,
    as_json: bool,
) -> None:
    """Run a job again, as a new job; its id is printed.

    It has the input of that job. A --source replaces all of its sources, an --option the one of that name.
    """
    given, written = parse_sources(sources), parse_options(options)
    with open_client(url) as client, text_told(written):
        job_input, job_id = None, find_job_id(client, job_id)
        if given or written:
            parent = client.get_job(job_id)
            job_input = msgspec.to_builtins(parent.input)
            if given:
                job_input["sources"] = msgspec.to_builtins(given)
            values = option_values(written, find_schema(client, parent.pipeline_type, written))
            job_input["options"] = {**job_input.get("options", {}), **values}
        job = client.rerun_job(
            job_id,
            from_step_id=from_step_id,
            reuse_upstream=reuse_upstream,
            pipeline=pipeline,
            override_input=job_input,
        )
    if as_json:
        print_json({"job": job})
    else:
        click.echo(job.id)


@command.command("delete")
@click.argument("job_ids", metavar="JOB...", nargs=-1, required=True)
@client_options
def delete_jobs(job_ids: tuple[str, ...], url: str | None, as_json: bool) -> None:
    """Delete finished jobs and all that belongs to them."""
    with open_client(url) as client:
        found = find_job_ids(client, job_ids)
        for text, job_id in zip(job_ids, found, strict=True):
            client.delete_job(job_id)
            if text != job_id and not as_json:
                click.echo(f"deleted {job_id}")
    if as_json:
        print_json({"deleted": found})


@command.command("top")
@client_options
def top(url: str | None, as_json: bool) -> None:
    """The unfinished jobs, live; once and in JSON with --json, once where there is no terminal. Ctrl-C ends it."""
    with open_client(url) as client:
        if as_json or not sys.stdout.isatty():
            jobs = _unfinished(client)
            if as_json:
                print_json({"jobs": jobs})
            else:
                rows = [(job.id, job.status, job.pipeline_type, _duration(job)) for job in jobs]
                if not rows:
                    click.echo("no job runs or waits")
                    return
                print_table(("JOB", "STATUS", "PIPELINE", "SECONDS"), rows)
            return
        try:
            with Live(console=Console(), screen=True, auto_refresh=False) as live:
                while True:
                    live.update(_top_table(_unfinished(client)), refresh=True)
                    time.sleep(TOP_INTERVAL)
        except KeyboardInterrupt:
            sys.exit(EXIT_CANCELLED)


def _unfinished(client: PipelineEngineClient) -> list[Job]:
    return [job for status in ("running", "queued") for job in client.list_jobs(status=status, limit=50).jobs]


def _top_table(jobs: Sequence[Job]) -> Table:
    table = Table("JOB", "STATUS", "PIPELINE", "SECONDS", box=None)
    table.caption = None if jobs else "no job runs or waits"
    for job in jobs:
        style = "cyan" if job.status == "running" else "dim"
        table.add_row(job.id, Text(job.status, style), Text(printable(job.pipeline_type)), _duration(job))
    return table


def _left_out(step: StepExecution) -> str:
    """That a step has gone on without some of its items."""
    if step.status != "success" or not step.errors:
        return ""
    return f"{len(step.errors)} item{'' if len(step.errors) == 1 else 's'} left out"


def _print_job(job: Job, *, as_json: bool) -> None:
    if as_json:
        print_json({"job": job})
    else:
        click.echo(f"{job.id}  {job.status}")


def _duration(job: Job) -> str:
    """The seconds that the job took, or takes so far."""
    began = parse_timestamp(job.started_at) if job.started_at is not None else None
    if began is None:
        return ""
    end = parse_timestamp(job.finished_at) if job.finished_at is not None else None
    seconds = ((end or datetime.now(UTC)) - began).total_seconds()
    return f"{max(0.0, seconds):.1f}"  # the clock of this machine may be behind the daemon's
