"""Clients that others' generators make of `/openapi.json`: they type-check strictly, and work against a daemon.

`make clients` installs the generators.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from tests.daemon_process import DaemonProcess
from tests.scripted_server import Reply, open_server

HERE = Path(__file__).parent
NODE = HERE / "typescript" / "node_modules" / ".bin"
PYTHON = HERE.parents[1] / ".venv-clients" / "bin"
SET_UP = "`make clients` installs the generators, and runs these tests"

#: The model says this to the first job, and nothing to the second one, which is cancelled.
GREETING = Reply.sse(
    {"choices": [{"delta": {"content": "Hello, "}}]},
    {"choices": [{"delta": {"content": "Ada!"}}]},
    {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
    b"data: [DONE]\n\n",
)
SEEN = {
    "created": "queued",
    "watched": {"words": ["Hello, ", "Ada!"], "last": "succeeded", "items": 1},
    "text": "Hello, Ada!",
    "usage": 2,
    "cancelled": ["cancelled", "cancelled", "not needed any more"],
    "listed": ["cancelled", "succeeded"],
    "unknown": [404, "not_found"],
    "refused": [400, "unknown_pipeline", ["shell.v1", "words.v1"]],
}

pytestmark = pytest.mark.timeout(180)


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, f"{command[0]}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    process = DaemonProcess(tmp_path_factory.mktemp("daemon")).start()
    yield process
    process.close()


@pytest.fixture(scope="module")
def document(daemon: DaemonProcess) -> bytes:
    return httpx.get(f"{daemon.url}/openapi.json", trust_env=False).raise_for_status().content


@pytest.fixture(scope="module")
def typescript(document: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program and the types that are generated for it."""
    assert NODE.is_dir(), SET_UP
    folder = tmp_path_factory.mktemp("typescript")
    for name in ("package.json", "tsconfig.json", "program.ts"):
        shutil.copy(HERE / "typescript" / name, folder)
    (folder / "node_modules").symlink_to(NODE.parent)
    (folder / "openapi.json").write_bytes(document)
    # A field of a request that has a default may be left out.
    run(
        NODE / "openapi-typescript", "openapi.json", "--default-non-nullable", "false", "-o", "api.d.ts", cwd=folder
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def python(document: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program and the package that is generated for it."""
    assert PYTHON.is_dir(), SET_UP
    folder = tmp_path_factory.mktemp("python")
    for name in ("generator.yaml", "program.py"):
        shutil.copy(HERE / "python" / name, folder)
    (folder / "openapi.json").write_bytes(document)
    run(
        PYTHON / "openapi-python-client", "generate", "--path", "openapi.json", "--config", "generator.yaml",
        "--meta", "none", "--output-path", "generated_client", "--fail-on-warning",
        cwd=folder,
    )  # fmt: skip
    return folder


def check_typescript(folder: Path) -> None:
    run(NODE / "tsc", "--project", ".", cwd=folder)


def check_python(folder: Path) -> None:
    run(
        PYTHON / "mypy",
        "--strict",
        "--python-executable",
        PYTHON / "python",
        "program.py",
        "generated_client",
        cwd=folder,
    )


@asynccontextmanager
async def model_server() -> AsyncIterator[str]:
    async with open_server(GREETING, Reply(end="silent")) as server:
        yield f"{server.url}/v1"


async def printed(*command: str | Path, cwd: Path) -> dict[str, Any]:
    """What the program says that it saw."""
    done = await trio.run_process([*map(str, command)], cwd=cwd, capture_stdout=True)
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


async def test_typescript(typescript: Path, daemon: DaemonProcess) -> None:
    await trio.to_thread.run_sync(partial(check_typescript, typescript))
    async with model_server() as model_url:
        seen = await printed("node", "built/program.js", daemon.url, model_url, cwd=typescript)
    assert seen == SEEN


async def test_python(python: Path, daemon: DaemonProcess) -> None:
    await trio.to_thread.run_sync(partial(check_python, python))
    async with model_server() as model_url:
        seen = await printed(PYTHON / "python", "program.py", daemon.url, model_url, cwd=python)
    assert seen == SEEN


@pytest.mark.parametrize(
    ("name", "check", "right", "wrong"),
    [
        ("typescript", check_typescript, "read.usage.completion_tokens", "read.usage.completed_tokens"),
        ("typescript", check_typescript, "line.data.content", "line.data.text"),
        ("python", check_python, "read.usage.completion_tokens", "read.usage.completed_tokens"),
        ("python", check_python, "event.data.content", "event.data.text"),
    ],
)
def test_a_wrong_use_is_seen(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    name: str,
    check: Callable[[Path], None],
    right: str,
    wrong: str,
) -> None:
    folder = shutil.copytree(request.getfixturevalue(name), tmp_path / name, symlinks=True)
    [program] = folder.glob("program.*")
    text = program.read_text(encoding="utf-8")
    assert right in text
    program.write_text(text.replace(right, wrong), encoding="utf-8")
    with pytest.raises(AssertionError, match=wrong.rpartition(".")[2]):
        check(folder)
