"""The programs of examples/ that show tokens live, as processes, with a real daemon and a Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from tests.daemon_process import DaemonProcess
from tests.scripted_server import Reply, ScriptedServer, open_server

from pipeline_engine_sdk import AsyncPipelineEngineClient

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 20.0  # seconds


def story(*words: str, is_done: bool) -> Reply:
    """What Ollama says; an unfinished story stays open until the client goes."""
    lines = [{"model": "llama3", "message": {"role": "assistant", "content": word}, "done": False} for word in words]
    end = {"model": "llama3", "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}
    return Reply.ndjson(*lines, end) if is_done else Reply.ndjson(*lines, end="stall")


async def start(library: str, daemon: DaemonProcess) -> trio.Process:
    command = [sys.executable, str(ROOT / "examples" / f"live_{library}.py")]
    return await trio.lowlevel.open_process(
        command, env=daemon.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


async def read(stream: trio.abc.ReceiveStream | None, expected: str) -> None:
    """Read the output until it is all there: no more may have come."""
    assert stream is not None
    text = b""
    while len(text) < len(expected.encode()):
        text += (piece := await stream.receive_some())
        assert piece, text
    assert text.decode() == expected


async def open_daemon(home: Path, monkeypatch: pytest.MonkeyPatch, server: ScriptedServer) -> DaemonProcess:
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    return await trio.to_thread.run_sync(DaemonProcess(home).start)


@pytest.mark.parametrize("library", ["trio", "asyncio"])
async def test_ctrl_c_cancels_the_job_of_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    async with open_server(story("Once ", "upon ", is_done=False)) as server:
        daemon = await open_daemon(tmp_path / "home", monkeypatch, server)
        try:
            with trio.fail_after(PATIENCE):
                process = await start(library, daemon)
                await read(process.stdout, "Once upon ")
                process.send_signal(signal.SIGINT)
                assert await process.wait() == 1
                await read(process.stderr, "\ncancelled\n")
                await server.wait_until_all_closed()
            async with AsyncPipelineEngineClient(daemon.url) as client:
                page = await client.list_jobs()
                assert [job.status for job in page.jobs] == ["cancelled"]
        finally:
            await trio.to_thread.run_sync(daemon.close)


@pytest.mark.parametrize("library", ["trio", "asyncio"])
async def test_a_program_ends_with_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    async with open_server(story("The ", "end", is_done=True)) as server:
        daemon = await open_daemon(tmp_path / "home", monkeypatch, server)
        try:
            with trio.fail_after(PATIENCE):
                process = await start(library, daemon)
                await read(process.stdout, "The end")
                assert await process.wait() == 0
            async with AsyncPipelineEngineClient(daemon.url) as client:
                page = await client.list_jobs()
                assert [job.status for job in page.jobs] == ["succeeded"]
        finally:
            await trio.to_thread.run_sync(daemon.close)
