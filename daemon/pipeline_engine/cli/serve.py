"""`pipeline-engine serve`: the daemon."""

from __future__ import annotations

import errno
import faulthandler
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import trio

from pipeline_engine.api.serving import describe_socket
from pipeline_engine.config import Config, LogFormat, check_exposure
from pipeline_engine.config_loader import load_config
from pipeline_engine.daemon import run_daemon
from pipeline_engine.errors import InvalidRequestError, PipelineEngineError
from pipeline_engine.logs import set_up_logging
from pipeline_engine.redaction import Redactor
from pipeline_engine.systemd import Supervision, read_supervision, turn_away

EXIT_FAILED = 1
EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h, which the units do not start again after


@click.command()
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="A configuration file.")
@click.option("--addr", metavar="ADDRESSES", help="HOST:PORT, :PORT or unix:/path; commas separate several.")
@click.option("--data-dir", help="Where jobs and artifacts are kept.")
@click.option("--pipelines-dir", help="Where definitions are; colons separate several.")
@click.option("--log-level", help="debug, info, warning, error or critical.")
@click.option(
    "--log-format",
    type=click.Choice([form.value for form in LogFormat], case_sensitive=False),
    help="How the log is written.",
)
def command(config_file: Path | None, **flags: str | None) -> None:
    """Run the daemon until SIGTERM or Ctrl-C; a second one does not wait for running jobs.

    SIGHUP reads the configuration and the definitions again. Exit codes: 0 stopped, 1 it cannot run (an address or the
    data directory is in use), 2 usage or a bad configuration; for the latter 78 under a service manager.
    """
    # When the watchdog of a service manager ends the daemon with SIGABRT, the log tells where it hung.
    faulthandler.enable()
    addr = flags.pop("addr")
    load = partial(load_config, environ=os.environ, config_file=config_file, overrides={**flags, "http.addr": addr})
    supervision = read_supervision(os.environ, pid=os.getpid())
    config = _load_checked(load, supervision)
    redactor = Redactor()
    set_up_logging(config.log_level, config.log_format, redact=redactor.redact, environ=os.environ)
    try:
        trio.run(partial(run_daemon, config, load=load, supervision=supervision, redactor=redactor))
    except* PipelineEngineError as group:
        for error in _leaves(group):
            is_taken = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
            hint = "; stop who listens there, or choose another address with --addr" if is_taken else ""
            click.echo(f"pipeline-engine: {error}{hint}", err=True)
        sys.exit(EXIT_FAILED)


def _load_checked(load: partial[Config], supervision: Supervision) -> Config:
    try:
        config = load()
        check_exposure(config, passed=map(describe_socket, supervision.passed))
    except InvalidRequestError as exc:
        if not supervision.notifier.is_heard:
            raise
        click.echo(f"pipeline-engine: {exc.message}", err=True)
        supervision.notifier.status(f"bad configuration: {exc.message}")
        turn_away(supervision.passed)
        sys.exit(EXIT_CONFIG)
    return config


def _leaves(group: BaseExceptionGroup[PipelineEngineError]) -> Iterator[PipelineEngineError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
