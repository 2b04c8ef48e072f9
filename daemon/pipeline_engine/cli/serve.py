"""`pipeline-engine serve`: the daemon."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import trio

from pipeline_engine.config import LogFormat, check_exposure
from pipeline_engine.config_loader import load_config
from pipeline_engine.daemon import run_daemon
from pipeline_engine.errors import PipelineEngineError
from pipeline_engine.logs import set_up_logging

EXIT_FAILED = 1


@click.command()
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="A configuration file.")
@click.option("--addr", metavar="ADDRESSES", help="HOST:PORT, :PORT or unix:/path; commas separate several.")
@click.option("--data-dir", help="Where jobs and artifacts are kept.")
@click.option("--pipelines-dir", help="Where definitions are; colons separate several.")
@click.option("--log-level", help="debug, info, warning, error or critical.")
@click.option("--log-format", type=click.Choice(list(LogFormat)), help="How the log is written.")
def command(config_file: Path | None, **flags: str | None) -> None:
    """Run the daemon until SIGTERM or Ctrl-C; a second one does not wait for running jobs.

    SIGHUP reads the configuration and the definitions again. Exit codes: 0 stopped, 1 it cannot run (an address or the
    data directory is in use), 2 usage or a bad configuration.
    """
    addr = flags.pop("addr")
    load = partial(load_config, environ=os.environ, config_file=config_file, overrides={**flags, "http.addr": addr})
    config = load()
    check_exposure(config)
    set_up_logging(config.log_level, config.log_format)
    try:
        trio.run(partial(run_daemon, config, load=load))
    except* PipelineEngineError as group:
        for error in _leaves(group):
            click.echo(f"pipeline-engine: {error}", err=True)
        sys.exit(EXIT_FAILED)


def _leaves(group: BaseExceptionGroup[PipelineEngineError]) -> Iterator[PipelineEngineError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
