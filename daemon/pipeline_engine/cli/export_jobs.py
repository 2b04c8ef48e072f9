"""`pipeline-engine export`: finished jobs, with all that belongs to them, into a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from pipeline_engine.archive.exporting import export_jobs, finished_jobs
from pipeline_engine.cli.client import print_json
from pipeline_engine.cli.display import printable
from pipeline_engine.cli.options import parse_label
from pipeline_engine.config_loader import load_config
from pipeline_engine.errors import PipelineEngineError
from pipeline_engine.models import JobId, JobStatus
from pipeline_engine.store.artifacts import ArtifactFiles
from pipeline_engine.store.base import JobFilter
from pipeline_engine.store.sqlite import open_sqlite_store_to_read

EXIT_LEFT_OUT = 1
FINAL = [status.value for status in JobStatus if status.is_final]


@click.command()
@click.argument("job_ids", metavar="[JOB]...", nargs=-1)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="The file to write; else standard output.")
@click.option("--status", type=click.Choice(FINAL), help="Only jobs in this status.")
@click.option("--type", "pipeline_type", metavar="TYPE", help="Only jobs of this pipeline.")
@click.option("--label", "-l", "labels", multiple=True, metavar="NAME=VALUE", help="Only jobs with this label.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="A configuration file.")
@click.option("--data-dir", help="Where the jobs are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON, on standard error.")
def command(
    job_ids: tuple[str, ...],
    output: Path | None,
    status: str | None,
    pipeline_type: str | None,
    labels: tuple[str, ...],
    config_file: Path | None,
    data_dir: str | None,
    as_json: bool,
) -> None:
    """Write finished jobs into a file, as NDJSON: those that are named, or all. A daemon may run meanwhile.

    Exit codes: 0 ok, 1 a job was left out, 2 usage, or the store cannot be read.
    """
    if job_ids and (status or pipeline_type or labels):
        raise click.UsageError("give either jobs or a filter")
    config = load_config(environ=os.environ, config_file=config_file, overrides={"data_dir": data_dir})
    database = config.data_dir / "engine.db"
    try:
        database.stat()
    except OSError as exc:
        words = f"there are no jobs in {config.data_dir} ({exc.strerror}); name the data directory with --data-dir"
        raise PipelineEngineError(words) from exc
    store = open_sqlite_store_to_read(database)
    try:
        wanted = JobFilter(
            status=None if status is None else JobStatus(status),
            pipeline_type=pipeline_type,
            labels=dict(parse_label(text) for text in labels),
        )
        chosen = map(JobId, dict.fromkeys(job_ids)) if job_ids else finished_jobs(store, wanted)
        with _opened(output) as out:
            report = export_jobs(store, ArtifactFiles(config.data_dir / "artifacts"), chosen, out)
    except OSError as exc:
        if output is None and exc.filename is None:  # standard output: the end of the program tells of it
            raise
        raise PipelineEngineError(f"{exc.filename or output}: the jobs cannot be written: {exc.strerror}") from exc
    finally:
        store.close()
    if as_json:
        print_json({"exported": report.exported, "left_out": report.left_out}, err=True)
    else:
        for job_id, reason in report.left_out.items():
            click.echo(printable(f"pipeline-engine: {job_id} is left out: {reason}"), err=True)
        click.echo(f"exported {report.exported} jobs", err=True)
    sys.exit(EXIT_LEFT_OUT if report.left_out else 0)


@contextmanager
def _opened(output: Path | None) -> Iterator[BinaryIO]:
    """Where the jobs go; a new file is for its owner alone, as the store is."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
