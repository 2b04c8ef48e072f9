"""The API as clients reach it: a real server on port 0, a real SQLite file, real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from tests.api_setting import body_of, configuration, ndjson
from tests.scripted_server import Reply, open_server

from pipeline_engine.api.app import create_app
from pipeline_engine.api.context import Api
from pipeline_engine.api.serving import (
    Guard,
    GuardSettings,
    ServeSettings,
    describe_listener,
    host_names,
    open_listeners,
    serve,
)
from pipeline_engine.assembly import open_engine
from pipeline_engine.engine import Engine
from pipeline_engine.listen_addresses import TcpAddress
from pipeline_engine.models import ProviderKind, ProviderProfile
from pipeline_engine.store.artifacts import ArtifactFiles
from pipeline_engine.store.sqlite import open_sqlite_store

MAP = {"id": "m", "kind": "map", "config": {"map": "identity"}, "export": True}
LLM = {"id": "a", "kind": "llm", "provider_profile_id": "up", "export": True}


def chunk(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


STALLED = Reply.sse(chunk("one "), chunk("two "), end="stall")


@asynccontextmanager
async def open_daemon(
    tmp_path: Path, *replies: Reply, **settings: object
) -> AsyncGenerator[tuple[httpx.AsyncClient, Engine], None]:
    """A client of an API whose profile `up` is a server with these replies."""
    config = configuration(**settings)
    store = open_sqlite_store(tmp_path / "engine.db")
    try:
        async with (
            open_server(*(replies or (STALLED,))) as upstream,
            open_engine(config, store=store, artifacts=ArtifactFiles(tmp_path / "artifacts"), environ={}) as local,
            open_listeners([TcpAddress("127.0.0.1", 0)]) as listeners,
            trio.open_nursery() as nursery,
        ):
            address = describe_listener(listeners[0])
            assert isinstance(address, TcpAddress)
            await local.catalog.put_profile(
                ProviderProfile(id="up", kind=ProviderKind.OPENAI, base_uri=upstream.url, default_model="m")
            )
            guard = GuardSettings(allowed_hosts=host_names([(address.host, address.port)]))
            app = Guard(create_app(Api(config=config, local=local)), settings=guard)
            stop = trio.Event()
            limits = ServeSettings(grace_s=1, max_body_bytes=config.limits.max_body_bytes)
            await nursery.start(partial(serve, app, listeners, settings=limits, stop=stop))
            async with httpx.AsyncClient(base_url=str(address), trust_env=False, timeout=20) as client:
                yield client, local.engine
            stop.set()
    finally:
        store.close()


async def read_stream(client: httpx.AsyncClient, job_id: str, *, until: bytes) -> None:
    """Follow the job until these bytes have come, and leave."""
    url = client.base_url
    assert url.port is not None
    with trio.fail_after(10):
        async with await trio.open_tcp_stream(url.host, url.port) as stream:
            await stream.send_all(f"GET /v1/jobs/{job_id}/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            received = b""
            while until not in received:
                piece = await stream.receive_some()
                assert piece, received
                received += piece


async def test_a_job_is_run_followed_and_read_back(tmp_path: Path) -> None:
    whole = Reply.sse(
        chunk("one "), {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, b"data: [DONE]\n\n"
    )
    async with open_daemon(tmp_path, whole) as (client, _):
        answer = await client.post("/v1/jobs?stream=true", json=body_of([LLM], ["hi"]))
        events = ndjson(answer.content)
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert events[-2]["data"]["result"]["items"][0]["data"]["text"] == "one "
        job = (await client.get(f"/v1/jobs/{events[0]['job_id']}")).json()["job"]
        assert (job["status"], job["last_seq"]) == ("succeeded", len(events))


async def test_events_reach_the_follower_while_the_job_runs(tmp_path: Path) -> None:
    async with open_daemon(tmp_path) as (client, _):
        job_id = (await client.post("/v1/jobs", json=body_of([LLM]))).json()["job"]["id"]
        await read_stream(client, job_id, until=b'"content":"two "')
        cancelled = await client.post(f"/v1/jobs/{job_id}/cancel", json={})
        assert cancelled.json()["job"]["status"] == "cancelled"


async def test_a_follower_that_leaves_is_forgotten_at_once(tmp_path: Path) -> None:
    async with open_daemon(tmp_path) as (client, engine):
        job_id = (await client.post("/v1/jobs", json=body_of([LLM]))).json()["job"]["id"]
        await read_stream(client, job_id, until=b"job_queued")
        for _ in range(200):
            if not engine.follower_count:
                break
            await trio.sleep(0.02)
        assert engine.follower_count == 0
        assert (await client.get(f"/v1/jobs/{job_id}")).json()["job"]["status"] == "running"


async def test_fifty_jobs_at_a_time_are_each_answered_with_their_own(tmp_path: Path) -> None:
    async with open_daemon(tmp_path) as (client, _):
        texts: dict[int, str] = {}

        async def run(number: int) -> None:
            answer = await client.post("/v1/jobs", json=body_of([MAP], [f"text {number}"], mode="sync"))
            texts[number] = answer.json()["job"]["result"]["items"][0]["data"]["text"]

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(run, number)
        assert texts == {number: f"text {number}" for number in range(50)}


async def test_ten_megabytes_come_back_as_they_were(tmp_path: Path) -> None:
    text = "é\u2028" * 2_000_000
    async with open_daemon(tmp_path) as (client, _):
        job = (await client.post("/v1/jobs", json=body_of([MAP], [text], mode="sync"))).json()["job"]
        assert job["result"]["items"][0]["data"]["text"] == text
        events = ndjson((await client.get(f"/v1/jobs/{job['id']}/stream")).content)
        assert events[0]["data"]["input"]["sources"][0]["content"] == text


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large_is_refused(tmp_path: Path, *, chunked: bool) -> None:
    async with open_daemon(tmp_path, limits__max_body_bytes=1000) as (client, _):
        data = json.dumps(body_of([MAP], ["x" * 5000])).encode()

        async def pieces() -> AsyncGenerator[bytes, None]:
            yield data

        headers = {"Content-Type": "application/json"}
        answer = await client.post("/v1/jobs", content=pieces() if chunked else data, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")


async def test_head_gives_the_head_alone(tmp_path: Path) -> None:
    async with open_daemon(tmp_path) as (client, _):
        answer = await client.head("/v1/metrics")
        assert (answer.status_code, answer.content) == (200, b"")
        assert int(answer.headers["content-length"]) > 0
        assert (await client.head("/v1/nothing")).status_code == 404
