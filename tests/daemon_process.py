"""A `pipeline-engine serve` of its own, for tests of what stands outside of it: the SDK and the client commands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 20.0  # seconds; nothing here takes more than a fraction of it

TOOLS = """
[[providers]]
id = "shell"
kind = "local_tool"
[providers.extra]
command = ["sh", "-c", "{{ options.script }}"]
grace_s = 0.2
"""
PIPELINES = """
- type: words.v1
  version: "1"
  description: Counts sources
  steps:
    - {id: each, kind: map, mode: fanout, config: {map: identity}}
    - {id: count, name: Count, kind: reduce, depends_on: [each], export: true,
       config: {reduce: template, template: "{{ items | length }} sources"}}
- type: shell.v1
  steps:
    - {id: t, kind: custom, provider_profile_id: shell, export: true}
"""


class DaemonProcess:
    """A daemon on a port of the system's choice and on a unix socket, with two pipelines: words.v1 and shell.v1."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.socket = home / "engine.sock"
        self.log = home / "daemon.log"
        self.url = ""
        self.api_key = ""
        self.process: subprocess.Popen[bytes] | None = None
        (home / "pipelines").mkdir(parents=True)
        (home / "pipelines" / "all.yaml").write_text(PIPELINES, encoding="utf-8")
        (home / "config.toml").write_text(TOOLS, encoding="utf-8")

    @property
    def environment(self) -> dict[str, str]:
        """For the daemon and its clients."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "PIPELINE_ENGINE_"))}
        return {
            **kept,
            "XDG_CONFIG_HOME": str(self.home / "xdg"),
            # After a restart it is where it was.
            "PIPELINE_ENGINE_ADDR": f"{self.url or '127.0.0.1:0'},unix:{self.socket}",
            "PIPELINE_ENGINE_API_KEY": self.api_key,
            "PIPELINE_ENGINE_CONFIG": str(self.home / "config.toml"),
            "PIPELINE_ENGINE_DATA_DIR": str(self.home / "data"),
            "PIPELINE_ENGINE_PIPELINES_DIR": str(self.home / "pipelines"),
            "PIPELINE_ENGINE_URL": self.url,
        }

    def start(self) -> DaemonProcess:
        before = len(self._text())
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline_engine", "serve"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        process = self.process
        until(lambda: len(re.findall("listening on", self._text()[before:])) == 2 or process.poll() is not None)
        found = re.findall(r"listening on (http://\S+)", self._text()[before:])
        assert found, self._text()
        self.url = found[0]
        return self

    def kill(self) -> None:
        """As a crash does it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()

    def _text(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""


def until(check: Callable[[], bool]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)
