"""The processes that are measured: the daemon, with files of its own, and the scripted provider."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent
READY_S = 60.0  # seconds within which a process must be ready


@contextmanager
def run_script(module: str, *arguments: str) -> Iterator[int]:
    """A module of ours as a process, while the block runs; gives the port that it prints."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="ascii") as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def environment() -> dict[str, str]:
    """That of this process, without what would change how the measured ones work."""
    # An installed package has its bytecode; this lets a checkout have it too.
    left_out = ("PIPELINE_ENGINE_", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(left_out)}


class Daemon:
    """`pipeline-engine serve` on a port and a data directory of its own, with a profile `p` on the provider."""

    def __init__(self, home: Path, *, provider_port: int, port: int, settings: str = "") -> None:
        self.home = home
        self.data = home / "data"
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None
        self.log = home / "daemon.log"
        profile = f'[[providers]]\nid = "p"\nkind = "openai"\nbase_uri = "http://127.0.0.1:{provider_port}/v1"\n'
        config = f"{settings}\n{profile}"
        (home / "config.toml").write_text(config, encoding="utf-8")

    def start(self) -> float:
        """Start, and return how many seconds it took to become ready."""
        began = time.monotonic()
        self.launch()
        while not self.is_ready():
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() - began > READY_S:
                raise RuntimeError(f"the daemon did not start:\n{self.log.read_text(encoding='utf-8')[-2000:]}")
            time.sleep(0.005)
        return time.monotonic() - began

    def launch(self) -> None:
        own = {"XDG_CONFIG_HOME": str(self.home), "PIPELINE_ENGINE_ADDR": f"127.0.0.1:{self.port}"}
        command = [sys.executable, "-m", "pipeline_engine", "serve", "--config", str(self.home / "config.toml")]
        command += ["--data-dir", str(self.data), "--log-level", "warning"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env=environment() | own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health/ready", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """End it as kill -9 does, and return when it is gone."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> float:
        """Ask it to stop, and return how many seconds it took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.terminate()
        try:
            self.process.wait(READY_S)
        except subprocess.TimeoutExpired:
            self.kill()
        return time.monotonic() - began

    def memory_kib(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise RuntimeError("the daemon is gone")

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def run_daemon(home: Path, *, provider_port: int, settings: str = "") -> Iterator[Daemon]:
    """A daemon that is ready, and stopped when the block ends."""
    home.mkdir(parents=True, exist_ok=True)
    daemon = Daemon(home, provider_port=provider_port, port=free_port(), settings=settings)
    daemon.start()
    try:
        yield daemon
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.stop()
