"""The SDK against a real daemon, over TCP and over its unix socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.daemon_process import DaemonProcess
from tests.image_server import PNG, open_image_server

from pipeline_engine_sdk import (
    AsyncPipelineEngineClient,
    Conflict,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    PipelineEngineClient,
    UnknownPipeline,
    parse_timestamp,
)

WORDS = {"pipeline_type": "words.v1", "input": {"sources": [{"content": "a"}, {"content": "b\u2028c"}]}}
MAP = {"id": "m", "kind": "map", "config": {"map": "identity"}}


def shell(script: str) -> dict[str, Any]:
    return {"pipeline_type": "shell.v1", "input": {"sources": [], "options": {"script": script}}}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    daemon = DaemonProcess(tmp_path_factory.mktemp("d") / "home").start()
    yield daemon
    daemon.close()


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[PipelineEngineClient]:
    with PipelineEngineClient(daemon.url) as client:
        yield client


def run_trio(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    trio.run(main)


def run_asyncio(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


@pytest.mark.parametrize("run", [run_trio, run_asyncio])
@pytest.mark.parametrize("over", ["tcp", "socket"])
def test_the_async_client_on_both_event_loops(daemon: DaemonProcess, run: Callable[..., None], over: str) -> None:
    where: dict[str, Any] = {"base_url": daemon.url} if over == "tcp" else {"uds": daemon.socket}

    async def main() -> None:
        async with AsyncPipelineEngineClient(**where) as client:
            assert (await client.health()).status == "ok"
            events = [event async for event in client.stream_job(WORDS)]
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            assert events[-1].event == "stream_finished"
            job = await client.wait_job(events[0].job_id)
            assert job.result is not None
            assert [item.text for item in job.result.items] == ["2 sources"]
            assert parse_timestamp(job.created_at) is not None
            assert [event.seq async for event in client.follow_job(job.id, after_seq=3)] == list(
                range(4, len(events) + 1)
            )
            assert [event async for event in client.follow_job(job.id, after_seq=len(events))] == []
            page = await client.list_events(job.id, after_seq=3, limit=2)
            assert (page.events, page.last_seq) == (events[3:5], len(events))
            again = await client.wait_job((await client.rerun_job(job.id, reuse_upstream=True)).id)
            assert (again.parent_job_id, again.status) == (job.id, "succeeded")
            assert [one.step_id for one in await client.list_checkpoints(job.id)] == ["each", "each", "count"]
            assert job.id in [one.id async for one in client.iterate_jobs(pipeline_type="words.v1", page_size=1)]
            slow = await client.create_job(shell("sleep 60"))
            # Leaving early needs no care: the client closes what is open.
            async for event in client.follow_job(slow.id):
                assert event.seq == 1
                break
            async with client.follow_job(slow.id) as stream:
                assert (await anext(stream)).event == "job_queued"
            assert (await client.cancel_job(slow.id, reason="enough")).status == "cancelled"

    run(main)


def test_the_sync_client(client: PipelineEngineClient) -> None:
    job = client.run_job(WORDS)
    assert job.status == "succeeded"
    assert client.get_job(job.id, include_chunks=True).step_executions is not None
    assert [event.event for event in client.stream_job(WORDS)][-1] == "stream_finished"
    assert client.create_job(WORDS, idempotency_key="once").id == client.create_job(WORDS, idempotency_key="once").id
    with pytest.raises(Conflict):
        client.create_job(shell("true"), idempotency_key="once")
    client.delete_job(job.id)
    with pytest.raises(NotFound) as caught:
        client.get_job(job.id)
    assert (caught.value.code, caught.value.status, caught.value.job_id) == ("not_found", 404, job.id)


def test_what_is_wrong_is_told_with_its_place(client: PipelineEngineClient) -> None:
    with pytest.raises(UnknownPipeline) as unknown:
        client.create_job({"pipeline_type": "none"})
    assert "words.v1" in unknown.value.details["known"]
    with pytest.raises(InvalidRequest) as invalid:
        client.create_job({"pipeline_type": "words.v1", "prio": 1})
    assert invalid.value.details["path"] == "prio"
    assert [problem.path for problem in client.validate_pipeline({"type": "x", "steps": []}).errors] == ["steps"]


def test_definitions_profiles_and_settings(client: PipelineEngineClient) -> None:
    stored = client.put_pipeline({"type": "mine.v1", "steps": [MAP]})
    assert client.get_pipeline("mine.v1") == stored
    assert "mine.v1" in [one.type for one in client.list_pipelines()]
    client.delete_pipeline("mine.v1")
    with pytest.raises(Conflict):
        client.delete_pipeline("words.v1")
    profile = {"id": "p", "kind": "openai", "base_uri": "http://127.0.0.1:9", "api_key": "secret"}
    assert client.upsert_provider_profile(profile).api_key_set
    # What was read can be written back.
    [read] = [one for one in client.list_providers() if one.id == "p"]
    assert client.upsert_provider_profile(read) == read
    client.delete_provider_profile("p")
    assert client.update_engine_config(log_level="debug")["log_level"] == "debug"
    assert client.get_metrics().provider_call_count["local_tool"] >= 0


def test_a_job_that_takes_too_long_is_left_alone(client: PipelineEngineClient) -> None:
    job = client.create_job(shell("sleep 60"))
    with pytest.raises(DeadlineExceeded):
        client.wait_job(job.id, timeout_s=0.3)
    assert client.get_job(job.id).status in ("queued", "running")
    client.cancel_job(job.id)


@pytest.fixture
def image_server() -> Iterator[str]:
    with open_image_server() as url:
        yield url


def test_artifacts_are_the_bytes(client: PipelineEngineClient, image_server: str, tmp_path: Path) -> None:
    client.upsert_provider_profile({"id": "draws", "kind": "image", "base_uri": image_server, "default_model": "m"})
    step = {"id": "i", "kind": "image", "provider_profile_id": "draws", "output_type": "image", "export": True}
    job = client.run_job({"pipeline": {"type": "image.v1", "steps": [{**step, "prompt": {"user": "a dot"}}]}})
    assert job.result is not None, job.error
    artifact = job.result.items[0].data["artifact"]
    assert client.get_artifact(job.id, artifact["id"]) == PNG
    assert client.save_artifact(job.id, artifact["id"], tmp_path / "dot.png") == len(PNG)
    assert (tmp_path / "dot.png").read_bytes() == PNG
    with pytest.raises(NotFound):
        client.save_artifact(job.id, "0" * 64, tmp_path / "none.png")
    assert [one.name for one in tmp_path.iterdir()] == ["dot.png"]


def test_proxies_of_the_environment_are_not_asked(daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for where in (daemon.url, daemon.url.replace("127.0.0.1", "localhost"), f"unix:{daemon.socket}"):
        with PipelineEngineClient(where) as client:
            assert client.health().status == "ok"


def test_nobody_at_the_address_is_told_with_the_address() -> None:
    with PipelineEngineClient("http://127.0.0.1:9") as client, pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:9"):
        client.health()


def test_followers_and_waiters_live_through_crashes(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path / "home").start()
    results: dict[str, Any] = {}
    script = "i=0; while [ $i -lt 15 ]; do echo $i; i=$((i+1)); sleep 0.1; done"

    def follow(client: PipelineEngineClient, job_id: str) -> None:
        results["seqs"] = [event.seq for event in client.follow_job(job_id)]

    def run(client: PipelineEngineClient) -> None:
        results["job"] = client.run_job(shell(script))

    try:
        with PipelineEngineClient(daemon.url) as client:
            job = client.create_job(shell(script))
            threads = [
                threading.Thread(target=follow, args=(client, job.id)),
                threading.Thread(target=run, args=(client,)),
            ]
            for thread in threads:
                thread.start()
            for begun in ("job_started", "job_resumed"):  # a job that has not gone on yet is not interrupted again
                next(event for event in client.follow_job(job.id) if event.event == begun)
                daemon.kill()
                daemon.start()
            for thread in threads:
                thread.join(30)
            done = client.wait_job(job.id)
        assert (done.status, done.restarts) == ("succeeded", 2)
        assert results["seqs"] == list(range(1, done.last_seq + 1))
        assert results["job"].status == "succeeded"
    finally:
        daemon.close()
