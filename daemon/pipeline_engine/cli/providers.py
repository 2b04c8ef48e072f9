"""`pipeline-engine providers`: the group of its commands, and `test`, which needs no daemon."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import trio

from pipeline_engine.cli.client import print_json
from pipeline_engine.cli.display import printable
from pipeline_engine.cli.profile_check import Finding, check_profile
from pipeline_engine.cli.providers_profiles import list_providers, set_provider
from pipeline_engine.config_loader import load_config

EXIT_FAILED = 1


@click.group()
def command() -> None:
    """The model servers and tools that steps use."""


command.add_command(list_providers)
command.add_command(set_provider)


@command.command("test")
@click.argument("profile_id", metavar="ID")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="A configuration file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def test_provider(profile_id: str, config_file: Path | None, as_json: bool) -> None:
    """Reach the server of a configured profile, list its models, and get one token. Needs no daemon.

    Exit codes: 0 it works, 1 it does not, 2 there is no such profile.
    """
    config = load_config(environ=os.environ, config_file=config_file)
    profile = config.providers.get(profile_id)
    if profile is None:
        known = ", ".join(sorted(config.providers))
        words = "it is the configuration of files and the environment that is tested; `providers list` asks a daemon"
        raise click.UsageError(f"the configuration has no profile {profile_id!r}; known: {known}; {words}")
    findings: list[Finding] = []

    def report(finding: Finding) -> None:
        findings.append(finding)
        if not as_json:
            click.echo(printable(f"{'ok' if finding.ok else 'failed'}: {finding.message} ({finding.seconds:.1f} s)"))

    # Elsewhere an interrupt may come between two lines of a cleanup, and leave a generator that nobody closes.
    fine = trio.run(check_profile, config, profile, report, restrict_keyboard_interrupt_to_checkpoints=True)
    if as_json:
        checks: list[dict[str, Any]] = [{**asdict(one), "seconds": round(one.seconds, 3)} for one in findings]
        print_json({"profile": profile_id, "ok": fine, "checks": checks})
    sys.exit(0 if fine else EXIT_FAILED)
