"""`pipeline-engine mcp` as a process of its own, with the official client at its standard input and output."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from mcp import MCPError
from tests.daemon_process import PATIENCE, DaemonProcess
from tests.mcp_setting import COMMAND, SLOW, WORDS, agent_over_stdio, call, running_job, text_of
from tests.scripted_server import Reply, open_server

from pipeline_engine_sdk import AsyncPipelineEngineClient


@pytest.mark.parametrize(("mode", "version"), [("legacy", "2025-11-25"), ("auto", "2026-07-28")])
async def test_both_eras_of_the_protocol(daemon: DaemonProcess, mode: str, version: str) -> None:
    async with agent_over_stdio(daemon.url, mode=mode) as agent:
        assert agent.protocol_version == version
        assert "list_pipelines" in (agent.instructions or "")
        assert {tool.name for tool in (await agent.list_tools()).tools} >= {"run_pipeline", "get_artifact"}
        answer = await call(agent, "run_pipeline", **WORDS)
        assert (answer["job"]["status"], answer["items"][0]["text"]) == ("succeeded", "2 sources")


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_call_that_is_cancelled_cancels_its_job(
    daemon: DaemonProcess, engine: AsyncPipelineEngineClient, mode: str
) -> None:
    async with agent_over_stdio(daemon.url, mode=mode) as agent:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.call_tool, "run_pipeline", {**SLOW, "labels": {"of": mode}})
            job = await running_job(engine, mode)
            nursery.cancel_scope.cancel()
        job = await engine.wait_job(job.id, timeout_s=PATIENCE)
        assert (job.status, "MCP client" in (job.error.message if job.error else "")) == ("cancelled", True)
        # The session goes on.
        assert (await call(agent, "get_job", job_id=job.id))["job"]["status"] == "cancelled"


async def test_options_name_the_daemon_and_what_may_be_done(daemon: DaemonProcess, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("from a file", encoding="utf-8")
    arguments = ("--url", f"unix:{daemon.socket}", "--allow-files", str(tmp_path))
    async with agent_over_stdio("http://127.0.0.1:9", *arguments) as agent:
        answer = await call(agent, "run_pipeline", pipeline_type="words.v1", sources=[{"path": "note.txt"}])
        assert answer["items"][0]["text"] == "1 sources"
    async with agent_over_stdio(f"unix:{daemon.socket}", "--read-only") as agent:
        assert "run_pipeline" not in {tool.name for tool in (await agent.list_tools()).tools}
        assert (await call(agent, "list_pipelines"))["total"] == 2


async def test_progress_is_told_as_steps_and_tokens_come(
    daemon: DaemonProcess, engine: AsyncPipelineEngineClient
) -> None:
    told: list[tuple[float, float | None, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, total, message))

    pieces = [{"choices": [{"index": 0, "delta": {"content": f"word{number} "}}]} for number in range(4)]
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    answer = replace(Reply.sse(*pieces, end, b"data: [DONE]\n\n"), delay_s=0.4)
    steps = [
        {"id": "first", "kind": "map", "mode": "fanout", "config": {"map": "identity"}},
        {"id": "writes", "kind": "llm", "depends_on": ["first"], "provider_profile_id": "model", "export": True},
    ]
    async with open_server(answer) as server, agent_over_stdio(daemon.url) as agent:
        profile = {"id": "model", "kind": "openai", "base_uri": server.url, "default_model": "m"}
        await engine.upsert_provider_profile(profile)
        arguments = {"pipeline": {"type": "told.v1", "steps": steps}, "sources": [{"content": "Write."}]}
        result = await agent.call_tool("run_pipeline", arguments, progress_callback=hear)
    assert result.structured_content is not None
    assert result.structured_content["items"][0]["text"] == "word0 word1 word2 word3 "
    values = [progress for progress, _, _ in told]
    assert values == sorted(set(values))
    assert len(told) >= 2
    assert told[-1][1] == 2
    assert re.fullmatch(r"1 of 2 steps done; writes: \d chunks … word0( word\d)*", str(told[-1][2]))


@pytest.mark.parametrize("leave", ["closes its side", "sends SIGTERM"])
async def test_a_client_that_leaves_takes_its_job_with_it(
    daemon: DaemonProcess, engine: AsyncPipelineEngineClient, leave: str
) -> None:
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
    request = {"name": "run_pipeline", "arguments": {**SLOW, "labels": {"of": leave}}}
    messages = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": request},
    ]
    # A line that is no message does no harm.
    lines = b"what?\n" + b"".join(json.dumps(message).encode() + b"\n" for message in messages)
    environment = daemon.environment
    with trio.fail_after(2 * PATIENCE):
        process = await trio.lowlevel.open_process(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        async with process.stdin, process.stdout, process.stderr:
            await process.stdin.send_all(lines)
            job = await running_job(engine, leave)
            if leave == "sends SIGTERM":
                process.terminate()
            else:
                await process.stdin.aclose()
            status = await process.wait()
            written = b"".join([piece async for piece in process.stdout])
            said = b"".join([piece async for piece in process.stderr])
    assert (status, b"Traceback" in said) == (0, False), said
    assert {json.loads(line)["jsonrpc"] for line in written.splitlines()} == {"2.0"}
    assert (await engine.wait_job(job.id, timeout_s=PATIENCE)).status == "cancelled"


def test_without_its_extra_the_command_says_what_to_install() -> None:
    program = "import sys; sys.modules['mcp'] = None; from pipeline_engine.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "mcp"], capture_output=True, encoding="utf-8", timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "pip install 'pipeline-engine[mcp]'" in done.stderr


async def test_without_a_daemon_the_server_lives_and_says_what_to_do(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path / "home")
    async with agent_over_stdio(f"unix:{daemon.socket}") as agent:
        assert len((await agent.list_tools()).tools) == 12
        assert (await agent.list_resources()).resources == []
        result = await agent.call_tool("run_pipeline", WORDS)
        assert result.is_error
        for words in ("pipeline-engine serve", "PIPELINE_ENGINE_URL", os.fspath(daemon.socket)):
            assert words in text_of(result)
        with pytest.raises(MCPError, match="pipeline-engine serve"):
            await agent.read_resource("pipeline-engine://pipelines/words.v1")
        # The session need not begin anew when the daemon is there.
        try:
            await trio.to_thread.run_sync(daemon.start)
            assert (await call(agent, "run_pipeline", **WORDS))["job"]["status"] == "succeeded"
        finally:
            await trio.to_thread.run_sync(daemon.close)
