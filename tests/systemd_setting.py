"""A machine with a real systemd, for the tests of the units: tests/sdbox, with the project installed in it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SDBOX = ROOT / "tests" / "sdbox"
#: A virtual environment made from an interpreter that a hardened unit can see is kept here, for the next run too.
CACHE = Path("/var/tmp/pipeline-engine-tests")
SYSTEM_PYTHON = Path("/usr/bin/python3")
HOME = Path("/opt/pipeline-engine")  # inside the box
PATIENCE = 20.0  # seconds


def why_not() -> str | None:
    """Why there can be no such machine here; None when there can."""
    if os.geteuid() != 0:
        return "needs root"
    if not Path("/lib/systemd/systemd").exists() or shutil.which("nsenter") is None:
        return "needs systemd and util-linux"
    release = Path("/etc/os-release")
    if not release.exists() or "bookworm" not in release.read_text(encoding="utf-8"):
        return "made for Debian 12"
    return None


def dependencies() -> Path:
    """A virtual environment with what the daemon depends on, but not the project itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted: list[str] = [*project["dependencies"], *project["optional-dependencies"]["daemon"]]
    constraints = ROOT / "constraints.txt"
    key = hashlib.sha256(json.dumps(wanted).encode() + constraints.read_bytes()).hexdigest()[:16]
    folder = CACHE / key
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{key}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            subprocess.run([SYSTEM_PYTHON, "-m", "venv", "--clear", folder], check=True)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            subprocess.run([*pip, "-c", constraints, *wanted], check=True)
            (folder / "ready").touch()
    return folder


class Box:
    """A booted machine. All of it is thrown away when it is closed."""

    def __init__(self, folder: Path) -> None:
        self._environment = {**os.environ, "SDBOX_DIR": str(folder)}
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.python = HOME / "bin" / "python"
        environment = dependencies()
        # The checkout may lie in /tmp or in a home, which the box does not see: its packages go where it does.
        with tempfile.TemporaryDirectory(dir=CACHE) as staged:
            for package in ("daemon/pipeline_engine", "sdk/pipeline_engine_sdk"):
                shutil.copytree(ROOT / package, Path(staged) / Path(package).name)
            self._install(environment, Path(staged))

    def _install(self, environment: Path, staged: Path) -> None:
        self._sdbox("up", "box")
        # Not used where it is: a virtual environment cannot be moved, and the service has a /var/tmp of its own.
        self.run(str(SYSTEM_PYTHON), "-m", "venv", "--without-pip", str(HOME))
        packages = HOME / "lib" / self.run("sh", "-c", f"ls {HOME}/lib").strip() / "site-packages"
        cached = environment / "lib" / packages.parent.name / "site-packages"
        self.run("cp", "-a", f"{cached}/.", str(packages))
        for package in staged.iterdir():  # not `staged/.`, whose mode is that of a private folder
            self.run("cp", "-a", str(package), str(packages))
        script = f"#!{self.python}\nfrom pipeline_engine.cli import main\nmain()\n"
        self.write(HOME / "bin" / "pipeline-engine", script)
        self.run("chmod", "+x", str(HOME / "bin" / "pipeline-engine"))
        self.run(str(self.python), "-m", "compileall", "-q", str(packages))
        # The box has no network but this.
        self.run("ip", "link", "set", "lo", "up")

    def _sdbox(self, *arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [str(SDBOX), *arguments]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, encoding="utf-8", check=False, timeout=60, **options
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def try_run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self._sdbox("exec", "box", *command, check=False)

    def run(self, *command: str) -> str:
        return self._sdbox("exec", "box", *command).stdout

    def write(self, file: Path | str, text: str, mode: str = "644") -> None:
        self.run("mkdir", "-p", str(Path(file).parent))
        self._sdbox("exec", "box", "tee", str(file), input=text)
        self.run("chmod", mode, str(file))

    def engine(self, *arguments: str) -> str:
        return self.run(str(HOME / "bin" / "pipeline-engine"), *arguments)

    def systemctl(self, *arguments: str) -> str:
        return self.run("systemctl", *arguments)

    def property(self, name: str, unit: str = "pipeline-engine.service") -> str:
        return self.systemctl("show", "-P", name, unit).strip()

    def log(self, *arguments: str) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", "pipeline-engine.service", *arguments)

    def get(self, path: str, *, curl: tuple[str, ...] = ()) -> Any:
        return json.loads(self.run("curl", "-sS", "--max-time", "20", *curl, f"http://127.0.0.1:8085{path}"))

    def post(self, path: str, body: Any) -> Any:
        header = ("-H", "Content-Type: application/json")
        return self.get(path, curl=(*header, "-d", json.dumps(body)))

    def until(self, check: Callable[[], bool]) -> float:
        """Wait for it; how long that took, in seconds."""
        began = time.monotonic()
        while not check():
            assert time.monotonic() - began < PATIENCE, self.log("-n", "50")
            time.sleep(0.05)
        return time.monotonic() - began

    def tool(self, profile: str, prompt: str = "") -> dict[str, Any]:
        """What became of a job that runs this tool once."""
        step = {"id": "t", "kind": "custom", "provider_profile_id": profile, "export": True}
        body = {"mode": "sync", "pipeline": {"type": "t.v1", "steps": [{**step, "prompt": {"user": prompt}}]}}
        answer = self.post("/v1/jobs", body)
        assert "job" in answer, answer
        job: dict[str, Any] = answer["job"]
        return job

    def tool_text(self, profile: str, prompt: str = "") -> str:
        job = self.tool(profile, prompt)
        assert job["status"] == "succeeded", job["error"]
        return str(job["result"]["items"][0]["data"]["text"])

    def security_score(self) -> float:
        text = self.try_run("systemd-analyze", "security", "--no-pager", "pipeline-engine.service").stdout
        return float(re.findall(r"exposure level for \S+: ([\d.]+)", text)[0])

    def close(self) -> None:
        self._sdbox("down", "box", check=False)
