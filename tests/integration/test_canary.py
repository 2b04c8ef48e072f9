"""A key that stands everywhere a key can stand is found nowhere but where the documentation says."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio
from tests.scripted_server import Reply, open_server

API_KEY = "canary-0-api-key"
#: Where each key is put.
KEYS = {
    "file": "canary-1-in-the-file",
    "environment": "canary-2-environment",
    "key_file": "canary-3-key-file",
    "credential": "canary-4-credential",
    "posted": "canary-5-posted",
    "header": "canary-6-header",
    "posted_header": "canary-7-posted-header",
    "override": "canary-8-override",
    "odd": 'canary-9-"quoted\\',
    "query": "canary-10-query",
    "proxy": "canary-11-proxy",
    "tool": "canary-12-tool",
    "server": "canary-13-server",
    "credential_file": "canary-14-credential-file",
    "collector": "canary-15-collector",
    "reloaded": "canary-16-reloaded",
}
CANARY = re.compile(rb"canary-\d")
PROFILES = (
    "file", "environment", "key_file", "openai-cli", "posted", "odd", "bad", "query", "proxy", "server",
    "credential_file", "reloaded",
)  # fmt: skip


def config(url: str, home: Path) -> str:
    profiles: list[dict[str, Any]] = [
        {"id": "file", "api_key": KEYS["file"], "extra": {"headers": {"X-Token": KEYS["header"]}}},
        {"id": "environment", "api_key_env": "SOME_KEY"},
        {"id": "key_file", "api_key_file": str(home / "key")},
        {"id": "odd", "api_key": KEYS["odd"]},
        {"id": "credential_file", "api_key_file": str(home / "credentials" / "provider")},
        {"id": "query", "base_uri": f"{url}/v1?key={KEYS['query']}&api-version=1"},
        # Behind a proxy, whose address has a password.
        {"id": "proxy", "base_uri": "http://model.example/v1"},
        # A header that cannot be sent: what says so must not show it.
        {"id": "bad", "api_key": KEYS["file"], "extra": {"headers": {"X-Token": KEYS["header"] + "\u20ac"}}},
    ]
    text = 'log_level = "debug"\n[tracing]\ncontent = true\n[handlers]\nboom = "boom:boom"\nbug = "boom:bug"\n'
    for profile in profiles:
        text += '[[providers]]\nkind = "openai"\n'
        profile.setdefault("base_uri", f"{url}/v1")
        extra = profile.pop("extra", {})
        text += "".join(f"{name} = {json.dumps(value)}\n" for name, value in profile.items())
        for name, value in extra.get("headers", {}).items():
            text += f"extra.headers.{name} = {json.dumps(value)}\n"
    tool = 'extra = { command = ["sh", "-c", "echo $TOKEN >&2; exit 1"], env = { TOKEN = "' + KEYS["tool"] + '" } }\n'
    # A model server that shows its key when it dies.
    text += '[[providers]]\nid = "server"\nkind = "openai"\nbase_uri = "http://127.0.0.1:9/v1"\n'
    text += f'api_key = "{KEYS["server"]}"\n[providers.extra.server]\nready = "http://127.0.0.1:9/health"\n'
    text += f'command = ["sh", "{home}/server.sh"]\n'
    return text + f'[[providers]]\nid = "tool"\nkind = "local_tool"\n{tool}'


#: Handlers that fail with a key in their errors; that of the second is a bug, which the log has with its traceback.
BOOM = f"""
def boom(item):
    raise RuntimeError({KEYS["environment"]!r})

class Text(str):
    def encode(self, *arguments):
        boom(self)

def bug(item):
    return Text()
"""


def launch(variables: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        command = [sys.executable, "-m", "pipeline_engine", "serve"]
        return subprocess.Popen(command, env=variables, stdout=file, stderr=file)


@asynccontextmanager
async def open_daemon(home: Path, url: str, collector: str) -> AsyncIterator[httpx.AsyncClient]:
    credentials = home / "credentials"
    credentials.mkdir()
    (credentials / "api_key").write_text(API_KEY, encoding="utf-8")
    (credentials / "provider").write_text(KEYS["credential_file"], encoding="utf-8")
    (home / "server.sh").write_text(f"echo {KEYS['server']} >&2\nexit 1\n", encoding="utf-8")
    (home / "boom.py").write_text(BOOM, encoding="utf-8")
    (home / "key").write_text(KEYS["key_file"], encoding="utf-8")
    (home / "config.toml").write_text(config(url, home), encoding="utf-8")
    variables = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    variables |= {
        "HOME": str(home),
        "PYTHONPATH": str(home),
        "HTTP_PROXY": f"http://me:{KEYS['proxy']}@{url.removeprefix('http://')}",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-token={KEYS['collector']}",
        "SOME_KEY": KEYS["environment"],
        "CREDENTIALS_DIRECTORY": str(credentials),
        "PIPELINE_ENGINE_CONFIG": str(home / "config.toml"),
        "PIPELINE_ENGINE_DATA_DIR": str(home / "data"),
        "PIPELINE_ENGINE_ADDR": "127.0.0.1:0",
        "PIPELINE_ENGINE_OPENAI_API_KEY": KEYS["credential"],
        "PIPELINE_ENGINE_OPENAI_BASE_URL": f"{url}/v1",
    }
    log = home / "log"
    process = launch(variables, log)
    try:
        deadline = time.monotonic() + 20
        while not (found := re.search(r"listening on (http://\S+)", log.read_text(encoding="utf-8"))):
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            await trio.sleep(0.02)
        headers = {"Authorization": f"Bearer {API_KEY}"}
        async with httpx.AsyncClient(base_url=found[1], headers=headers, trust_env=False, timeout=20) as client:
            yield client
    finally:
        process.terminate()
        await trio.to_thread.run_sync(process.wait)


def echo(status: int) -> Reply:
    """An answer that repeats every key there is, as servers do in their errors."""
    said = " ".join(KEYS.values())
    return Reply.json({"error": {"message": f"Incorrect API key provided: {said}", "code": said}}, status=status)


async def test_no_key_is_seen_where_none_belongs(tmp_path: Path) -> None:
    seen: list[bytes] = []
    async with (
        open_server(echo(401)) as server,
        open_server(echo(500)) as collector,
        open_daemon(tmp_path, server.url, collector.url) as client,
    ):

        async def call(method: str, path: str, **options: Any) -> httpx.Response:
            answer = await client.request(method, path, **options)
            seen.append(str(answer.headers).encode() + answer.content)
            return answer

        posted = {
            "id": "posted",
            "kind": "openai",
            "base_uri": f"{server.url}/v1",
            "api_key": KEYS["posted"],
            "extra": {"headers": {"X-Token": KEYS["posted_header"]}},
        }
        assert (await call("POST", "/v1/config/providers", json=posted)).status_code == 200
        assert (await call("POST", "/v1/config/providers", json={**posted, "typo": KEYS["posted"]})).status_code == 400
        assert (await call("POST", "/v1/config/providers", json={**posted, "kind": 1})).status_code == 400
        override = {"headers": {"X-Token": KEYS["override"]}}
        registered = {"type": "kept.v1", "steps": [llm("file", override)]}
        assert (await call("PUT", "/v1/config/pipelines/kept.v1", json=registered)).status_code in (200, 201)
        await call("GET", "/v1/config/pipelines/kept.v1")
        # A key that comes while the daemon runs.
        (tmp_path / "key2").write_text(KEYS["reloaded"], encoding="utf-8")
        profile = (
            f'[[providers]]\nid = "reloaded"\nkind = "openai"\nbase_uri = "{server.url}/v1"\napi_key_file = "key2"\n'
        )
        with (tmp_path / "config.toml").open("a", encoding="utf-8") as file:
            file.write(profile)
        for _ in range(200):
            await trio.sleep(0.05)
            if '"reloaded"' in (await call("GET", "/v1/config/providers")).text:
                break
        job: dict[str, Any] = {}
        for profile in (*PROFILES, "tool", "boom", "bug"):
            steps = [llm(profile, override)]
            if profile == "tool":
                steps = [{"id": "s", "kind": "custom", "provider_profile_id": "tool"}]
            if profile in ("boom", "bug"):
                steps = [{"id": "s", "kind": "custom", "config": {"handler": profile}}]
            body = {"mode": "sync", "pipeline": {"type": "t.v1", "steps": steps}}
            job = (await call("POST", "/v1/jobs", json=body)).json()["job"]
            assert job["status"] == "failed", job
            for path in ("", "?include=chunks", "/stream", "/events", "/checkpoints"):
                await call("GET", f"/v1/jobs/{job['id']}{path}")
        routes = [
            path for path, calls in (await call("GET", "/openapi.json")).json()["paths"].items() if "get" in calls
        ]
        assert len(routes) > 10
        for path in routes:
            filled = path.format(id=job["id"], type="kept.v1", artifact="0" * 64)
            assert (await call("GET", filled)).status_code in (200, 404), path
        await call("POST", "/v1/config/engine", json={})
        await call("GET", f"/v1/jobs?api_key={KEYS['file']}", headers={"Authorization": f"Bearer {KEYS['file']}"})
        sent = b" ".join(f"{request.target} {request.headers}".encode() for request in server.requests)
        running = stored_bytes(tmp_path)  # the write-ahead log among it

    # Each key was really used: a test that sends none would prove nothing.
    assert base64.b64encode(f"me:{KEYS['proxy']}".encode()) in sent
    used = {
        "file",
        "environment",
        "key_file",
        "credential",
        "posted",
        "override",
        "query",
        "credential_file",
        "reloaded",
    }
    assert {name for name in used if KEYS[name].encode() not in sent} == set()
    spans = b"".join(request.body for request in collector.requests)
    assert b"invoke_workflow t.v1" in spans
    assert b"hello" in spans
    assert CANARY.findall(spans) == []
    assert collector.requests[0].headers["x-token"] == KEYS["collector"]
    leaks = [
        answer[max(0, match.start() - 200) : match.end() + 60] for answer in seen if (match := CANARY.search(answer))
    ]
    assert leaks == []
    log = (tmp_path / "log").read_bytes()
    assert b"RuntimeError: ***" in log
    assert CANARY.findall(log) == []
    # In the store: what clients put, so that it is there after a restart; nothing of the configuration.
    for stored in (running, stored_bytes(tmp_path)):
        found = {key for key in (API_KEY, *KEYS.values()) if key.encode() in stored}
        assert found == {KEYS["posted"], KEYS["posted_header"], KEYS["override"]}
    for kept in (tmp_path / "data").rglob("*"):
        assert kept.stat().st_mode & 0o077 == 0, kept


def stored_bytes(home: Path) -> bytes:
    return b"".join(file.read_bytes() for file in (home / "data").rglob("*") if file.is_file())


def llm(profile: str, override: dict[str, Any]) -> dict[str, Any]:
    profile_id = {"credential": "openai-cli"}.get(profile, profile)
    return {
        "id": "s",
        "kind": "llm",
        "provider_profile_id": profile_id,
        "provider_override": override,
        "prompt": {"user": "hello"},
        "output_type": "text",
        "retry": {"max_attempts": 1},
    }
