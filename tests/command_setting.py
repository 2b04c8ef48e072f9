"""Commands as processes, against a daemon."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.daemon_process import PATIENCE, DaemonProcess

from pipeline_engine_sdk import PipelineEngineClient

COMMAND = [sys.executable, "-m", "pipeline_engine"]
GOOD = 'type: put.v1\nversion: "2"\nsteps:\n  - {id: a, kind: map, config: {map: identity}}\n'


def call(daemon: DaemonProcess, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = daemon.environment | variables
    return subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, encoding="utf-8", timeout=PATIENCE, check=False
    )


def ok(daemon: DaemonProcess, *arguments: str) -> str:
    done = call(daemon, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ok_json(daemon: DaemonProcess, *arguments: str) -> Any:
    return json.loads(ok(daemon, *arguments, "--json"))


def shell_job(client: PipelineEngineClient, script: str) -> str:
    return client.create_job({"pipeline_type": "shell.v1", "input": {"options": {"script": script}}}).id
