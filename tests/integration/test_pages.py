"""A reader who does what a page shows, from its first line to its last, sees what the page says."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.model_server import open_model_server
from tests.page_sessions import PAGES, commands_of, run_page

ROOT = Path(__file__).resolve().parents[2]
NOBODY = "127.0.0.1:9"
NAMES = ["README.md", *(f"docs/{page}" for page in PAGES)]


@pytest.fixture
def model_server() -> Iterator[str]:
    with open_model_server() as address:
        yield address


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.skipif(shutil.which("curl") is None, reason="the pages show curl, which is not here")
@pytest.mark.timeout(150)  # dozens of commands, each a process
@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_what_its_commands_do(tmp_path: Path, model_server: str, name: str) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copy(ROOT / "LICENSE", tmp_path)
    daemon = f"127.0.0.1:{free_port()}"
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "TMPDIR": str(tmp_path),
        "PIPELINE_ENGINE_ADDR": daemon,
        "PIPELINE_ENGINE_URL": f"http://{daemon}",
        "OLLAMA_HOST": model_server,
    }
    if name == "README.md":
        # It shows a command with a key for OpenAI. (Elsewhere the variable would bring pipelines that no page lists.)
        environment["PIPELINE_ENGINE_OPENAI_BASE_URL"] = f"http://{model_server}/v1"
    addresses = {
        "127.0.0.1:8085": daemon,
        "127.0.0.1:8000": model_server,
        "127.0.0.1:9000": model_server.replace("127.0.0.1", "localhost"),
    }
    if name == "docs/first-run.md":  # there is no Ollama yet
        environment["OLLAMA_HOST"] = addresses["127.0.0.1:11434"] = NOBODY
    problems = run_page(page, home=tmp_path, environment=environment, addresses=addresses)
    assert not problems, "\n\n".join(problems)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_what_most_of_its_commands_print(name: str) -> None:
    commands = [one for one in commands_of((ROOT / "docs" / name).read_text(encoding="utf-8")) if one.line]
    assert sum(bool(one.shown) for one in commands) > len(commands) / 2
