"""`pipeline-engine follow`, and what it shares with `submit --follow`: a job's events on the screen, then its result."""

from __future__ import annotations

import shlex
import sys
from typing import Any

import click
import msgspec
from rich.console import Console

from pipeline_engine.cli.client import EXIT_CANCELLED, EXIT_CODES, client_options, open_client
from pipeline_engine.cli.display import Display, LiveDisplay, PlainDisplay, QuietDisplay, print_error, print_items
from pipeline_engine.cli.job_ids import find_job_id
from pipeline_engine_sdk import Event, Job

CERTAIN_ERRORS = {"template_error"}  # which the same steps meet again on the same input


@click.command()
@click.argument("job_id", metavar="JOB")
@click.option("--after-seq", type=click.IntRange(min=0), default=0, help="Begin behind this event.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@client_options
def command(job_id: str, after_seq: int, quiet: bool, url: str | None, as_json: bool) -> None:
    """Follow a job to its end, also across restarts of the daemon, and print its results.

    With --json every event is a line of JSON. Ctrl-C stops following; the job goes on.
    Exit codes: 0 ok, 1 the job failed, 2 no such job, 3 the daemon cannot be reached, 130 cancelled.
    """
    with open_client(url) as client:
        job_id = find_job_id(client, job_id)
        # Asked first: a follower would wait for a daemon that is not there to come back.
        client.get_job(job_id)
        display = JsonDisplay() if as_json else choose_display(quiet=quiet)
        try:
            show_events(client.follow_job(job_id, after_seq=after_seq), display)
        except KeyboardInterrupt:
            sys.exit(EXIT_CANCELLED)
        job = client.get_job(job_id)
    if not as_json:
        print_results(job, url=url)
    sys.exit(EXIT_CODES[job.status])


class JsonDisplay:
    """Each event as a line of JSON on standard output."""

    def show(self, event: Any) -> None:
        sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
        sys.stdout.flush()

    def close(self) -> None:
        return None


def choose_display(*, quiet: bool) -> Display:
    """Tokens and progress on a terminal; elsewhere a line for each step."""
    if quiet:
        return QuietDisplay()
    console = Console(stderr=True)
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(sys.stderr)


def show_events(events: Any, display: Display) -> None:
    try:
        with events:
            for event in events:
                assert isinstance(event, Event)
                display.show(event.to_dict())
    finally:
        display.close()


def print_results(job: Job, *, url: str | None) -> None:
    """The items of the job on standard output, and why it failed on standard error, with what can be done.

    `url` is what --url has named.
    """
    items = [item.to_dict() for item in job.result.items] if job.result is not None else []
    # A display that was closed has left the terminal to us.
    print_items(items, console=Console() if sys.stdout.isatty() else None, stream=sys.stdout)
    if job.error is None:
        return
    print_error(job.error.to_dict(), status=job.status, stream=sys.stderr)
    where = "" if url is None else f" --url {shlex.quote(url)}"
    words = f"what there is: pipeline-engine jobs show {job.id}{where}"
    if job.error.code not in CERTAIN_ERRORS:
        words += f"; again: pipeline-engine jobs rerun {job.id} --reuse-upstream{where}"
    print(f"pipeline-engine: {words}", file=sys.stderr)
