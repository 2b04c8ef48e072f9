"""`pipeline-engine providers test` against servers that answer as they are told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.scripted_server import Reply, open_server

COMMAND = [sys.executable, "-m", "pipeline_engine", "providers", "test"]
MODELS = Reply.json({"object": "list", "data": [{"id": "small"}, {"id": "large"}]})
TOKENS = Reply.sse({"choices": [{"index": 0, "delta": {"content": "Hi"}}]}, end="stall")
REFUSED = Reply.json({"error": {"message": "bad key sk-secret", "code": "invalid_api_key"}}, status=401)


def write_profile(tmp_path: Path, **profile: Any) -> None:
    """A configuration file that has only this profile."""
    given = {"id": "mine", "kind": "openai", "default_model": "small", "api_key": "sk-secret", **profile}
    extra = given.pop("extra", None)
    lines = ["[[providers]]", *(f"{key} = {json.dumps(value)}" for key, value in given.items())]
    if extra is not None:
        env = extra.pop("env", {})
        lines += ["[providers.extra]", *(f"{key} = {json.dumps(value)}" for key, value in extra.items())]
        lines += ["[providers.extra.env]", *(f"{key} = {json.dumps(value)}" for key, value in env.items())]
    (tmp_path / "config.toml").write_text("\n".join(lines), encoding="utf-8")


async def run(tmp_path: Path, profile_id: str, *arguments: str, **profile: Any) -> subprocess.CompletedProcess[bytes]:
    write_profile(tmp_path, **profile)
    command = [*COMMAND, profile_id, "--config", "config.toml"]
    with trio.fail_after(30):
        return await trio.run_process(
            [*command, *arguments],
            cwd=tmp_path,
            env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "xdg")},
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )


async def test_a_profile_that_works(tmp_path: Path) -> None:
    async with open_server(MODELS, TOKENS) as server:
        done = await run(tmp_path, "mine", base_uri=f"{server.url}/v1")
        assert done.returncode == 0, done.stderr
        assert b"ok: the server lists 2 models (" in done.stdout
        assert b"ok: small answers: its first token is 'Hi' (" in done.stdout
        assert [(one.method, one.target) for one in server.requests] == [
            ("GET", "/v1/models"),
            ("POST", "/v1/chat/completions"),
        ]
        assert {one.headers["authorization"] for one in server.requests} == {"Bearer sk-secret"}


async def test_json_has_each_check(tmp_path: Path) -> None:
    async with open_server(MODELS, REFUSED) as server:
        done = await run(tmp_path, "mine", "--json", base_uri=f"{server.url}/v1", default_model="other")
    report = json.loads(done.stdout)
    assert (done.returncode, report["profile"], report["ok"]) == (1, "mine", False)
    models, token = report["checks"]
    assert (models["check"], models["ok"], models["value"]) == ("models", True, ["small", "large"])
    assert models["message"].endswith("default_model 'other' is not among them")
    assert (token["check"], token["ok"], token["code"]) == ("token", False, "provider_auth")
    assert b"sk-secret" not in done.stdout


async def test_what_failed_is_said_in_words(tmp_path: Path) -> None:
    async with open_server(Reply.json({}, status=404), REFUSED) as server:
        done = await run(tmp_path, "mine", base_uri=f"{server.url}/v1")
    assert done.returncode == 1
    assert b"answered 401: bad key ***; the server does not take the key of the profile 'mine'" in done.stdout


async def test_a_server_without_a_list_of_models_can_work(tmp_path: Path) -> None:
    async with open_server(Reply.json({}, status=404), TOKENS) as server:
        done = await run(tmp_path, "mine", base_uri=f"{server.url}/v1")
    assert done.returncode == 0
    assert b"failed: " in done.stdout
    assert b"its first token is 'Hi'" in done.stdout


async def test_ctrl_c_ends_the_test_with_a_line(tmp_path: Path) -> None:
    async with open_server(MODELS, Reply.sse(end="stall")) as server:
        write_profile(tmp_path, base_uri=f"{server.url}/v1")
        process = await trio.lowlevel.open_process(
            [*COMMAND, "mine", "--config", "config.toml"],
            cwd=tmp_path,
            env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "xdg")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        with trio.fail_after(30):
            assert b"lists 2 models" in await process.stdout.receive_some()
            process.send_signal(signal.SIGINT)
            told = b"".join([part async for part in process.stderr])
            assert await process.wait() == 130
    assert told.strip() == b"pipeline-engine: interrupted"


async def test_nobody_there_ends_the_test_at_once(tmp_path: Path) -> None:
    async with open_server(MODELS) as server:
        address = server.url
    done = await run(tmp_path, "mine", base_uri=address)
    assert done.returncode == 1
    assert done.stdout.count(b"\n") == 1
    assert b"(connection refused)" in done.stdout


async def test_ollama_lists_its_models_elsewhere(tmp_path: Path) -> None:
    tags = Reply.json({"models": [{"name": "small:latest", "model": "small:latest"}]})
    answer = Reply.ndjson({"message": {"content": "Hi"}, "done": False}, end="stall")
    async with open_server(tags, answer) as server:
        done = await run(tmp_path, "mine", kind="ollama", base_uri=server.url)
        assert [one.target for one in server.requests] == ["/api/tags", "/api/chat"]
    assert done.returncode == 0
    assert b"not among" not in done.stdout


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"command": ["cat"]}, "ok: the program 'cat' is "),
        ({"command": ["no-such-program"]}, "failed: the program 'no-such-program' is not on PATH"),
        ({"command": ["tool.sh"], "env": {"PATH": "{here}/bin"}}, "ok: the program 'tool.sh' is {here}/bin/tool.sh"),
        ({"command": ["{here}/bin/tool.sh"]}, "ok: "),
        ({"command": ["{here}/bin/absent"]}, "failed: the program '{here}/bin/absent' is not there, or not executable"),
        # It is there where this command runs, but that is not where the tool works.
        ({"command": ["bin/tool.sh"]}, "failed: the program 'bin/tool.sh' would be looked for in the empty folder"),
        ({"command": ["bin/tool.sh"], "cwd": "{here}"}, "ok: the program 'bin/tool.sh' is {here}/bin/tool.sh"),
        ({"command": ["./tool.sh"], "cwd": "{here}"}, "failed: the program './tool.sh' is not in {here}"),
        ({"command": ["cat"], "cwd": "{here}/none"}, "failed: there is no folder {here}/none (extra.cwd)"),
    ],
)
async def test_a_tool_is_looked_for_where_it_is_started_and_not_run(
    tmp_path: Path, extra: dict[str, Any], words: str
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tool.sh").write_text("#!/bin/sh\n", encoding="utf-8")
    (tmp_path / "bin" / "tool.sh").chmod(0o755)
    placed = json.loads(json.dumps(extra).replace("{here}", str(tmp_path)))
    tool = {"kind": "local_tool", "base_uri": "", "default_model": "", "api_key": ""}
    done = await run(tmp_path, "mine", **tool, extra=placed)
    expected = words.replace("{here}", str(tmp_path))
    assert done.stdout.decode().startswith(expected), done.stderr
    assert done.returncode == (0 if words.startswith("ok") else 1)


async def test_an_unknown_profile_is_a_mistake_in_the_command(tmp_path: Path) -> None:
    done = await run(tmp_path, "other", base_uri="http://127.0.0.1:1")
    assert done.returncode == 2
    assert b"no profile 'other'; known: " in done.stderr
    assert b"`providers list` asks a daemon" in done.stderr  # which may know it
