"""`pipeline-engine doctor`: whether everything is as the daemon and its clients need it."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import click

from pipeline_engine import __version__
from pipeline_engine.cli.client import EXIT_UNREACHABLE, START_HINT, client_options, print_json
from pipeline_engine.cli.display import printable
from pipeline_engine.config import Config
from pipeline_engine.config_loader import load_config
from pipeline_engine.errors import PipelineEngineError
from pipeline_engine.providers.hints import hint_to_start
from pipeline_engine_sdk import ConnectionFailed, PipelineEngineClient, ProviderProfile
from pipeline_engine_sdk import PipelineEngineError as ClientError

EXIT_UNWELL = 1
LITTLE_SPACE = 100 * 1024 * 1024  # bytes
PROBE_TIMEOUT = 2.0  # seconds

State = Literal["ok", "warning", "failed", "unreachable"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found. `warning` says that something may be missing which not everybody needs."""

    check: str
    state: State
    message: str


@click.command()
@client_options
def command(url: str | None, as_json: bool) -> None:
    """Check Python, the configuration, the data directory, the daemon, its store, definition files and model servers.

    Exit codes: 0 all is well (there may be warnings), 1 something is wrong, 3 the daemon cannot be reached.
    """
    findings = []
    for finding in _findings(url):
        findings.append(finding)
        if not as_json:
            click.echo(printable(f"{finding.state:<11}  {finding.check:<14}  {finding.message}"))
    if as_json:
        print_json({"checks": [asdict(finding) for finding in findings]})
    states = {finding.state for finding in findings}
    sys.exit(EXIT_UNREACHABLE if "unreachable" in states else EXIT_UNWELL if "failed" in states else 0)


def _findings(url: str | None) -> Iterator[Finding]:
    yield Finding("python", "ok", f"{sys.version.split()[0]} at {sys.executable}, pipeline-engine {__version__}")
    try:
        config = load_config(environ=os.environ)
    except PipelineEngineError as exc:
        yield Finding("configuration", "failed", exc.message)
    else:
        files = ", ".join(map(str, config.files)) or "no file, defaults and environment"
        yield Finding("configuration", "ok", files)
        for warning in config.warnings:
            yield Finding("configuration", "warning", warning)
        yield _data_dir(config)
        yield _tracing(config)
    yield from _daemon(url)


def _data_dir(config: Config) -> Finding:
    """The directory, or the nearest one that exists already and would hold it."""
    path: Path = config.data_dir
    existing = next(one for one in (path, *path.parents) if one.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding("data directory", "failed", f"{path} cannot be written by this user")
    free = shutil.disk_usage(existing).free
    state: State = "warning" if free < LITTLE_SPACE else "ok"
    return Finding("data directory", state, f"{path}, {free // 1024**2} MiB free")


def _tracing(config: Config) -> Finding:
    """Whether the daemon sends spans, and whether there is somebody who takes them."""
    if not config.tracing.enabled:
        return Finding("tracing", "ok", "off")
    content = "with prompts and answers" if config.tracing.content else "without prompts and answers"
    words = _cannot_connect(config.tracing.endpoint)
    if words is not None:
        return Finding("tracing", "warning", f"on, but {config.tracing.endpoint} cannot be reached from here: {words}")
    return Finding("tracing", "ok", f"on, {content}, to {config.tracing.endpoint}")


def _daemon(url: str | None) -> Iterator[Finding]:
    try:
        with PipelineEngineClient(url) as client:
            health = client.health()
            yield Finding("daemon", "ok", f"version {health.version}, up for {health.uptime_sec:.0f} s")
            if health.version != __version__:
                yield Finding("daemon", "warning", f"this program is version {__version__}")
            client.list_jobs(limit=1)
            yield Finding("store", "ok", "can be read")
            for words in client.list_broken_files():
                yield Finding("definitions", "failed", f"{words}; what the file said before, if anything, is in force")
            yield from _providers(client.list_providers())
    except ConnectionFailed as exc:
        yield Finding("daemon", "unreachable", f"{exc.message}; {START_HINT}")
    except ClientError as exc:
        yield Finding("daemon", "failed", exc.message)


def _providers(profiles: list[ProviderProfile]) -> Iterator[Finding]:
    """Whether something listens at the address of each model server; it is asked nothing, which could cost money."""
    # A server that the daemon starts by itself need not run now.
    servers = [profile for profile in profiles if profile.base_uri and not profile.extra.get("server")]
    with ThreadPoolExecutor(max_workers=8) as pool:
        yield from pool.map(_probe, servers)


def _probe(profile: ProviderProfile) -> Finding:
    check = f"provider {profile.id}"
    words = _cannot_connect(profile.base_uri)
    if words is None:
        return Finding(check, "ok", f"{profile.base_uri} takes connections")
    words = f"{profile.base_uri} cannot be reached from here: {words}"
    hint = hint_to_start(profile.id, profile.kind, profile.base_uri)
    return Finding(check, "warning", f"{words}; {hint}" if hint else words)


def _cannot_connect(address: str) -> str | None:
    """Why nothing at the address takes connections; None if something does."""
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=PROBE_TIMEOUT):
            return None
    except OSError as exc:
        return exc.strerror or str(exc)
