"""A key that stands everywhere a key can stand is found nowhere but where the documentation says."""

from __future__ import annotations

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
}
CANARY = re.compile(rb"canary-\d")


def config(url: str, home: Path) -> str:
    profiles: list[dict[str, Any]] = [
        {"id": "file", "api_key": KEYS["file"], "extra": {"headers": {"X-Token": KEYS["header"]}}},
        {"id": "environment", "api_key_env": "SOME_KEY"},
        {"id": "key_file", "api_key_file": str(home / "key")},
        {"id": "odd", "api_key": KEYS["odd"]},
        # A header that cannot be sent: what says so must not show it.
        {"id": "bad", "api_key": KEYS["file"], "extra": {"headers": {"X-Token": KEYS["header"] + "\u20ac"}}},
    ]
    text = 'log_level = "debug"\n'
    for profile in profiles:
        text += "[[providers]]\n" + f'kind = "openai"\nbase_uri = "{url}/v1"\n'
        extra = profile.pop("extra", {})
        text += "".join(f"{name} = {json.dumps(value)}\n" for name, value in profile.items())
        for name, value in extra.get("headers", {}).items():
            text += f"extra.headers.{name} = {json.dumps(value)}\n"
    tool = 'extra = { command = ["sh", "-c", "echo $TOKEN >&2; exit 1"], env = { TOKEN = "' + KEYS["file"] + '" } }\n'
    return text + f'[[providers]]\nid = "tool"\nkind = "local_tool"\n{tool}'


def launch(variables: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        command = [sys.executable, "-m", "pipeline_engine", "serve"]
        return subprocess.Popen(command, env=variables, stdout=file, stderr=file)


@asynccontextmanager
async def open_daemon(home: Path, url: str) -> AsyncIterator[httpx.AsyncClient]:
    credentials = home / "credentials"
    credentials.mkdir()
    (credentials / "api_key").write_text(API_KEY, encoding="utf-8")
    (home / "key").write_text(KEYS["key_file"], encoding="utf-8")
    (home / "config.toml").write_text(config(url, home), encoding="utf-8")
    variables = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    variables |= {
        "HOME": str(home),
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
    async with open_server(echo(401)) as server, open_daemon(tmp_path, server.url) as client:

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
        for profile in ("file", "environment", "key_file", "openai-cli", "posted", "odd", "bad", "tool"):
            body = {"mode": "sync", "pipeline": {"type": "t.v1", "steps": [llm(profile, override)]}}
            if profile == "tool":
                body["pipeline"]["steps"] = [{"id": "s", "kind": "custom", "provider_profile_id": "tool"}]  # type: ignore[index]
            job = (await call("POST", "/v1/jobs", json=body)).json()["job"]
            assert job["status"] == "failed", job
            for path in ("", "?include=chunks", "/stream", "/events", "/checkpoints"):
                await call("GET", f"/v1/jobs/{job['id']}{path}")
        for path in (
            "/v1/jobs", "/v1/config/providers", "/v1/config/pipelines", "/metrics", "/v1/metrics", "/openapi.json"
        ):  # fmt: skip
            assert (await call("GET", path)).status_code == 200
        await call("POST", "/v1/config/engine", json={})
        await call("GET", f"/v1/jobs?api_key={KEYS['file']}", headers={"Authorization": f"Bearer {KEYS['file']}"})
        sent = b" ".join(str(request.headers).encode() for request in server.requests)

    # Each key was really used: a test that sends none would prove nothing.
    for name in ("file", "environment", "key_file", "credential", "posted", "header", "posted_header", "override"):
        assert KEYS[name].encode() in sent or name in ("header", "posted_header"), name
    assert [answer for answer in seen if CANARY.search(answer)] == []
    assert CANARY.findall((tmp_path / "log").read_bytes()) == []
    # In the store: what clients put, so that it is there after a restart; nothing of the configuration.
    stored = b"".join(file.read_bytes() for file in (tmp_path / "data").rglob("*") if file.is_file())
    found = {key for key in (API_KEY, *KEYS.values()) if key.encode() in stored}
    assert found == {KEYS["posted"], KEYS["posted_header"], KEYS["override"]}
    for file in (tmp_path / "data").rglob("*"):
        assert file.stat().st_mode & 0o077 == 0, file


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
