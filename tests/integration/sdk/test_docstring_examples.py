"""The examples in the docstrings of both clients, run against a daemon on trio, on asyncio and without either."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import textwrap
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import trio
from tests.daemon_process import DaemonProcess
from tests.image_server import open_image_server

import pipeline_engine_sdk
from pipeline_engine_sdk import AsyncPipelineEngineClient, PipelineEngineClient

#: What the examples run: its result is an artifact, and it has a step that a rerun can begin at.
NOTES = {
    "type": "notes.v1",
    "version": "1",
    "steps": [
        {"id": "each", "kind": "map", "config": {"map": "identity"}},
        {
            "id": "summary",
            "kind": "image",
            "depends_on": ["each"],
            "provider_profile_id": "draws",
            "output_type": "image",
            "prompt": {"user": "a dot"},
            "export": True,
        },
    ],
}
COPY = {"type": "copy.v1", "version": "1", "steps": [{"id": "copy", "kind": "map", "config": {"map": "identity"}}]}
MINE = {"id": "mine", "kind": "openai", "base_uri": "http://127.0.0.1:9/v1", "default_model": "m"}
REQUEST = {"pipeline_type": "notes.v1", "input": {"sources": [{"content": "..."}]}}


def examples_of(client: type) -> dict[str, str]:
    """The indented blocks in the docstrings of the class and its public methods; empty where there is none."""
    source = Path(inspect.getfile(client)).read_text(encoding="utf-8")
    [node] = [one for one in ast.parse(source).body if isinstance(one, ast.ClassDef) and one.name == client.__name__]
    methods = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    documented = [node, *(method for method in methods if not method.name.startswith("_"))]
    return {one.name: example_in(ast.get_docstring(one, clean=False) or "", one.col_offset + 4) for one in documented}


def example_in(docstring: str, margin: int) -> str:
    lines = docstring.split("\n")[1:]
    return textwrap.dedent("\n".join(line for line in lines if line.startswith(" " * (margin + 4))))


EXAMPLES: dict[type, dict[str, str]] = {
    client: examples_of(client) for client in (AsyncPipelineEngineClient, PipelineEngineClient)
}


@pytest.mark.parametrize("client", list(EXAMPLES), ids=lambda client: client.__name__)
def test_each_public_method_has_an_example_of_itself(client: type) -> None:
    examples = EXAMPLES[client]
    assert {"run_job", "stream_job", "cancel_job", "health"} <= examples.keys()
    assert [name for name, code in examples.items() if f"{name}(" not in code] == []


def test_both_clients_show_the_same() -> None:
    def plain(code: str) -> str:
        code = re.sub(r"\(await ([\w.]+\([^)]*\))\)", r"\1", code)
        return re.sub(r"\b(await |async |Async|a(?=close))", "", code)

    mine, others = ([plain(code) for code in examples.values()] for examples in EXAMPLES.values())
    assert mine == others


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    daemon = DaemonProcess(tmp_path_factory.mktemp("d") / "home").start()
    yield daemon
    daemon.close()


@pytest.fixture(scope="module")
def image_server() -> Iterator[str]:
    with open_image_server() as url:
        yield url


@pytest.fixture
def names(daemon: DaemonProcess, image_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the examples take for granted: a request, a finished job of it, a stored definition and a profile."""
    monkeypatch.setenv("PIPELINE_ENGINE_URL", daemon.url)
    monkeypatch.chdir(tmp_path)
    with PipelineEngineClient() as client:
        for profile in (MINE, {**MINE, "id": "draws", "kind": "image", "base_uri": image_server}):
            client.upsert_provider_profile(profile)
        for definition in (NOTES, COPY):
            client.put_pipeline(definition)
        job = client.run_job(REQUEST)
    assert job.status == "succeeded", job.error
    return {**vars(pipeline_engine_sdk), "request": REQUEST, "job": job}


def run_trio(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    trio.run(main)


def run_asyncio(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


@pytest.mark.parametrize("run", [run_trio, run_asyncio])
@pytest.mark.parametrize("name", EXAMPLES[AsyncPipelineEngineClient])
def test_the_examples_of_the_async_client_run(names: dict[str, Any], run: Callable[..., None], name: str) -> None:
    compiled = compile(EXAMPLES[AsyncPipelineEngineClient][name], name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    async def main() -> None:
        async with AsyncPipelineEngineClient() as client:
            # Code with an await at its top gives a coroutine.
            await FunctionType(compiled, {**names, "client": client})()

    run(main)


@pytest.mark.parametrize("name", EXAMPLES[PipelineEngineClient])
def test_the_examples_of_the_sync_client_run(names: dict[str, Any], name: str) -> None:
    with PipelineEngineClient() as client:
        exec(EXAMPLES[PipelineEngineClient][name], {**names, "client": client})
