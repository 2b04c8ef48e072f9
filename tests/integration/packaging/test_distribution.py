"""What `pip install` brings: the files of the wheel, the dependencies of the base install, and the SDK's types."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = [ROOT / "daemon" / "pipeline_engine", ROOT / "sdk" / "pipeline_engine_sdk"]

# The first of them build and install, from a package index.
pytestmark = pytest.mark.timeout(300)

SCRIPT = """
from pipeline_engine_sdk import AsyncPipelineEngineClient, JobRequest, PipelineEngineClient


def ask(client: PipelineEngineClient, request: JobRequest) -> list[str | None]:
    job = client.run_job(request)
    assert job.result is not None
    return [item.text for item in job.result.items]


async def follow(client: AsyncPipelineEngineClient, job_id: str) -> int:
    last = 0
    async for event in client.follow_job(job_id):
        last = event.seq
    return last


async def count(client: AsyncPipelineEngineClient) -> int:
    return len([job.status async for job in client.iterate_jobs(labels={"team": "a"})])
"""
MISTAKES = SCRIPT.replace("-> list[str | None]:", "-> list[int]:").replace("last = event.seq", "last = event.event")


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """What a program prints; the environment has nothing that would let it find the checkout."""
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "MYPYPATH"}}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True, slots=True)
class Built:
    sdist: Path
    #: Made from the sdist, as an index would do it.
    wheel: Path
    #: Made from the checkout.
    direct_wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "direct", ROOT)
    [sdist], [wheel] = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    [direct_wheel] = (folder / "direct").glob("*.whl")
    return Built(sdist, wheel, direct_wheel)


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the wheel and what it needs, and nothing else."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", built.wheel)
    return python


def contents(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def test_the_wheel_is_the_same_from_the_sdist_and_from_the_checkout(built: Built) -> None:
    assert contents(built.wheel) == contents(built.direct_wheel)


def test_the_wheel_holds_every_file_of_both_packages_and_no_other(built: Built) -> None:
    ours = {
        str(path.relative_to(package.parent))
        for package in PACKAGES
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in contents(built.wheel) if ".dist-info/" not in name} == ours
    data = {"pipeline_engine/store/schema.sql", "pipeline_engine/web/index.html", "pipeline_engine_sdk/py.typed"}
    assert data <= ours


def test_the_sdist_can_be_tested(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "constraints.txt", "LICENSE", "README.md", "CHANGELOG.md", "tests/conftest.py"} <= names
    assert {"docs/sdk.md", "examples/log-digest.yaml", "examples/data/system.log", "benchmarks/__main__.py"} <= names


def test_the_base_install_is_the_sdk_and_no_server(installed: Path) -> None:
    listing = run(sys.executable, "-m", "pip", "--python", installed, "list", "--format", "freeze")
    names = {line.partition("==")[0].partition(" @")[0].lower() for line in listing.splitlines()}
    assert {"httpx", "msgspec", "pipeline-engine"} <= names
    assert not names & {"apsw", "click", "hypercorn", "quart", "quart-trio", "rich", "trio", "werkzeug"}
    # Run elsewhere: the checkout must not be what is imported.
    where = run(installed, "-c", "import pipeline_engine_sdk as sdk; print(sdk.__file__)", cwd=installed.parent)
    assert Path(where).is_relative_to(installed.parents[1])


def test_the_command_of_the_base_install_says_what_is_missing(installed: Path) -> None:
    command = installed.with_name("pipeline-engine")
    done = subprocess.run([command, "--help"], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 2
    assert "pip install 'pipeline-engine[daemon]'" in done.stderr
    assert "Traceback" not in done.stderr


def mypy(script: str, folder: Path, python: Path) -> subprocess.CompletedProcess[str]:
    """What mypy says of a user's script, in a folder without any settings."""
    (folder / "script.py").write_text(script, encoding="utf-8")
    options = ["--strict", "--config-file=", "--no-error-summary", f"--cache-dir={python.parents[1] / 'mypy'}"]
    return subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--python-executable", python, "script.py"],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def test_a_type_checker_finds_the_types_of_the_installed_sdk(installed: Path, tmp_path: Path) -> None:
    done = mypy(SCRIPT, tmp_path, installed)
    assert (done.stdout, done.returncode) == ("", 0)
    done = mypy(MISTAKES, tmp_path, installed)
    assert done.returncode == 1
    assert [line.rpartition(" ")[2] for line in done.stdout.splitlines()] == ["[misc]", "[assignment]"], done.stdout
