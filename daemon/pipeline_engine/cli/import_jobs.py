"""`pipeline-engine import`: the jobs of an export into the store of this machine."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click

from pipeline_engine.archive.importing import ImportReport, import_jobs
from pipeline_engine.cli import stdin_is_closed
from pipeline_engine.cli.client import print_json
from pipeline_engine.cli.display import printable
from pipeline_engine.config import Config
from pipeline_engine.config_loader import load_config
from pipeline_engine.errors import InvalidRequestError, Problem
from pipeline_engine.store.age_clock import open_age_clock
from pipeline_engine.store.artifacts import ArtifactFiles
from pipeline_engine.store.lock import hold_directory
from pipeline_engine.store.sqlite import open_sqlite_store

EXIT_REFUSED = 2
DAY_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class _Outcome:
    report: ImportReport
    overdue: int  # of the imported jobs: retention removes them as soon as a daemon runs


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="A configuration file.")
@click.option("--data-dir", help="Where the jobs are to be kept.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def command(file: Path, config_file: Path | None, data_dir: str | None, as_json: bool) -> None:
    """Bring the jobs of an export FILE (- is standard input) into the store; no daemon may hold it meanwhile.

    A job that is there already is passed over; one that is not whole is refused with the number of the line, and
    nothing of it stays. Exit codes: 0 ok, 2 usage, or something was refused.
    """
    config = load_config(environ=os.environ, config_file=config_file, overrides={"data_dir": data_dir})
    with _opened(file) as source:
        outcome = _import(config, source, name=_name_of(file))
    report = outcome.report
    if as_json:
        refused = [{"line": line, "message": message} for line, message in report.refused]
        value = {"imported": list(report.imported), "present": report.present, "refused": refused}
        print_json({**value, "overdue": outcome.overdue})
    else:
        for job_id in report.present:
            click.echo(f"{job_id} is there already")
        for line, message in report.refused:
            click.echo(printable(f"pipeline-engine: {_name_of(file)}:{line}: {message}"), err=True)
        click.echo(f"imported {len(report.imported)} jobs")
        if outcome.overdue:
            words = f"{outcome.overdue} of them ended longer ago than store.retention.max_age_days allows"
            click.echo(f"pipeline-engine: {words}: a daemon removes them when it starts", err=True)
    sys.exit(EXIT_REFUSED if report.refused else 0)


def _name_of(file: Path) -> str:
    return "standard input" if file == Path("-") else str(file)


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    if file == Path("-"):
        if stdin_is_closed():
            raise click.UsageError("standard input (-) is closed")
        yield sys.stdin.buffer
        return
    try:
        source = file.open("rb")
    except OSError as exc:
        raise InvalidRequestError([Problem("", f"cannot be read: {exc.strerror}")], source=str(file)) from exc
    with source:
        yield source


def _import(config: Config, source: BinaryIO, *, name: str) -> _Outcome:
    directory = config.data_dir
    with hold_directory(directory):
        store = open_sqlite_store(directory / "engine.db", durability="full")
        try:
            clock = open_age_clock(directory / "clock.json", newest=store.last_finished_at())
            now = clock.now()
            report = import_jobs(store, ArtifactFiles(directory / "artifacts"), source, name=name, now=now)
            oldest = now - config.store.retention.max_age_days * DAY_S
            return _Outcome(report, sum(ended <= oldest for ended in report.imported.values()))
        finally:
            store.close()
            _give_to_owner_of(directory)


def _give_to_owner_of(directory: Path) -> None:
    """What root has made here, the user of the daemon must be able to use.

    Only what root owns and has no other name: nothing that lies elsewhere changes hands through a link.
    """
    owner = directory.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    for _, names, file_names, descriptor in os.fwalk(directory):
        for name in (*names, *file_names):
            found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if found.st_uid == 0 and (stat.S_ISDIR(found.st_mode) or found.st_nlink == 1):
                os.chown(name, owner.st_uid, owner.st_gid, dir_fd=descriptor, follow_symlinks=False)
