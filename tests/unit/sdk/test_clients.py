"""Both clients over a transport that answers as the test says."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

from pipeline_engine_sdk import (
    AsyncPipelineEngineClient,
    ClientClosed,
    Conflict,
    ConnectionFailed,
    InvalidRequest,
    JobInput,
    JobRequest,
    PipelineDef,
    PipelineEngineClient,
    ProtocolError,
    Source,
    StepDef,
    Unavailable,
    WrongEventLoop,
)

JOB = {"id": "job_1", "pipeline_type": "t", "status": "queued", "created_at": "", "updated_at": "", "invented": [1]}
BUSY = {"error": {"code": "unavailable", "message": "draining", "details": {"job_id": "job_9"}}}
Answer = httpx.Response | Exception


class Script:
    """The nth request gets the nth answer; the last one repeats."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


def ok(value: object, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=value)


def client_of(script: Script, **more: Any) -> AsyncPipelineEngineClient:
    return AsyncPipelineEngineClient("http://127.0.0.1:9", transport=httpx.MockTransport(script), **more)


def stream_of(*events: dict[str, Any]) -> httpx.Response:
    text = "".join(json.dumps({"job_id": "job_1", "ts": "t", "data": {}, **event}) + "\n" for event in events)
    return httpx.Response(200, content=text.encode())


async def test_a_submission_is_sent_again_with_the_same_key(autojump_clock: MockClock) -> None:
    script = Script(httpx.ReadError("cut"), ok(BUSY, 503), ok({"job": JOB}, 202))
    async with client_of(script) as client:
        job = await client.create_job({"pipeline_type": "t"})
    assert job.id == "job_1"
    assert len({request.headers["idempotency-key"] for request in script.requests}) == 1
    assert len({request.content for request in script.requests}) == 1


async def test_each_submission_has_a_key_of_its_own(autojump_clock: MockClock) -> None:
    script = Script(ok({"job": JOB}, 202))
    async with client_of(script) as client:
        await client.create_job({"pipeline_type": "t"})
        await client.create_job({"pipeline_type": "t"})
        await client.create_job({"pipeline_type": "t"}, idempotency_key="mine")
    keys = [request.headers["idempotency-key"] for request in script.requests]
    assert keys[0] != keys[1]
    assert keys[2] == "mine"


async def test_a_deletion_that_may_have_arrived_is_not_sent_again(autojump_clock: MockClock) -> None:
    script = Script(httpx.ReadError("cut"))
    async with client_of(script) as client:
        with pytest.raises(ConnectionFailed):
            await client.delete_job("job_1")
    assert len(script.requests) == 1


async def test_retries_are_bounded_and_then_the_error_is_told(autojump_clock: MockClock) -> None:
    script = Script(ok(BUSY, 503))
    async with client_of(script, max_retries=4) as client:
        with pytest.raises(Unavailable, match="draining") as caught:
            await client.get_metrics()
    assert len(script.requests) == 5
    assert (caught.value.code, caught.value.status, caught.value.job_id) == ("unavailable", 503, "job_9")


async def test_a_refusal_is_not_asked_again(autojump_clock: MockClock) -> None:
    script = Script(ok({"error": {"code": "conflict", "message": "it runs", "details": {}}}, 409))
    async with client_of(script) as client:
        with pytest.raises(Conflict, match="it runs"):
            await client.delete_job("job_1")
    assert len(script.requests) == 1


async def test_an_answer_of_another_kind_is_a_protocol_error(autojump_clock: MockClock) -> None:
    async with client_of(Script(httpx.Response(200, content=b"<html>"))) as client:
        with pytest.raises(ProtocolError, match="GET /health"):
            await client.health()


async def test_models_and_dicts_say_the_same(autojump_clock: MockClock) -> None:
    script = Script(ok({"job": JOB}, 202))
    typed = JobRequest(
        pipeline=PipelineDef(type="t", steps=[StepDef(id="a", kind="map", config={"map": "identity"})]),
        input=JobInput(sources=[Source(content="x")], options={"n": 1}),
    )
    plain = {
        "pipeline": {"type": "t", "steps": [{"id": "a", "kind": "map", "config": {"map": "identity"}}]},
        "input": {"sources": [{"content": "x"}], "options": {"n": 1}},
    }
    mixed = {**plain, "input": typed.input}
    async with client_of(script) as client:
        for request in (typed, plain, mixed):
            await client.create_job(request)
    bodies = [json.loads(request.content) for request in script.requests]
    assert bodies == [{**plain, "mode": "async"}] * 3


async def test_a_stream_goes_on_where_it_broke(autojump_clock: MockClock) -> None:
    script = Script(
        stream_of({"seq": 1, "event": "job_queued"}, {"event": "heartbeat"}),
        httpx.ConnectError("refused"),
        stream_of({"seq": 1, "event": "job_queued"}, {"seq": 2, "event": "stream_finished"}),
    )
    async with client_of(script) as client:
        events = [event async for event in client.stream_job({"pipeline_type": "t"})]
    assert [event.seq for event in events] == [1, 2]
    assert [request.method for request in script.requests] == ["POST", "GET", "GET"]
    assert script.requests[-1].url.params["after_seq"] == "1"


async def test_a_connection_that_breaks_after_every_event_loses_and_repeats_nothing(autojump_clock: MockClock) -> None:
    last = 500

    def answer(request: httpx.Request) -> httpx.Response:
        seq = int(request.url.params["after_seq"]) + 1
        name = "stream_finished" if seq == last else "provider_chunk"
        return stream_of({"event": "heartbeat"}, {"seq": seq, "event": name})

    transport = httpx.MockTransport(answer)
    async with AsyncPipelineEngineClient("http://127.0.0.1:9", transport=transport) as client:
        seqs = [event.seq async for event in client.follow_job("job_1")]
    assert seqs == list(range(1, last + 1))


async def test_a_follower_gives_up_after_its_time(autojump_clock: MockClock) -> None:
    script = Script(httpx.ConnectError("refused"))
    async with client_of(script) as client:
        # The clock of the pauses is virtual, that of the patience is not: no time, no patience.
        with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:9"):
            [event async for event in client.follow_job("job_1", give_up_after_s=0)]


async def test_jobs_of_all_pages_are_given(autojump_clock: MockClock) -> None:
    second = {**JOB, "id": "job_2"}
    script = Script(ok({"jobs": [JOB], "next_cursor": "7"}), ok({"jobs": [second], "next_cursor": None}))
    async with client_of(script) as client:
        found = [job.id async for job in client.iterate_jobs(labels={"team": "a"}, page_size=1)]
    assert found == ["job_1", "job_2"]
    assert dict(script.requests[1].url.params) == {"label": "team:a", "limit": "1", "cursor": "7"}


def run_in_trio(main: Coroutine[Any, Any, str]) -> str:
    async def await_it() -> str:
        return await main

    return trio.run(await_it)


def test_a_client_belongs_to_one_event_loop() -> None:
    client = client_of(Script(ok({"status": "ok"})))

    async def use() -> str:
        return (await client.health()).status

    assert asyncio.run(use()) == "ok"
    for run in (asyncio.run, run_in_trio):
        with pytest.raises(WrongEventLoop, match="another event loop"):
            run(use())


@pytest.mark.parametrize("run", [asyncio.run, run_in_trio])
def test_a_client_for_each_run_is_fine(run: Callable[[Any], Any]) -> None:
    async def use() -> str:
        async with client_of(Script(httpx.ConnectError("refused"), ok({"status": "ok"}))) as client:
            return (await client.health()).status

    assert [run(use()), run(use())] == ["ok", "ok"]


def test_both_clients_have_the_same_methods() -> None:
    def methods(class_: type) -> dict[str, str]:
        return {
            name: str(inspect.signature(member)).partition(" -> ")[0]
            for name, member in vars(class_).items()
            if not name.startswith("_") and name not in ("close", "aclose")
        }

    assert methods(AsyncPipelineEngineClient) == methods(PipelineEngineClient)


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        ({"input": {"sources": [{"content": "a"}, {"content": b"hello"}]}}, "input.sources[1].content"),
        ({"input": {"options": {"data": bytearray(b"hello")}}}, "input.options.data"),
        (JobRequest(input=JobInput(sources=[Source(content=b"hello")])), "input.sources[0].content"),  # type: ignore[arg-type]
        ({"input": JobInput(options={"data": memoryview(b"hello")})}, "input.options.data"),
    ],
)
async def test_bytes_are_refused_with_their_place(request_: Any, path: str) -> None:
    script = Script(ok({"job": JOB}))
    async with client_of(script) as client:
        with pytest.raises(InvalidRequest, match="content_base64") as caught:
            await client.run_job(request_)
        assert caught.value.message.startswith(f"{path}: ")
        assert caught.value.details == {"path": path}
        with pytest.raises(InvalidRequest, match=r"^override_input\."):
            await client.rerun_job("job_1", override_input={"options": {"data": b"hello"}})
    assert script.requests == []


async def test_what_is_no_request_is_refused_in_words() -> None:
    async with client_of(Script(ok({"job": JOB}))) as client:
        with pytest.raises(InvalidRequest, match=r"expected a dict or a typed model, not 'orders\.v1'"):
            await client.run_job("orders.v1")  # type: ignore[arg-type]
        endless: dict[str, Any] = {}
        endless["input"] = endless
        with pytest.raises(InvalidRequest, match="cannot be written as JSON"):
            await client.create_job(endless)


async def test_a_closed_client_says_so() -> None:
    client = client_of(Script(ok({"status": "ok"})))
    stream = client.follow_job("job_1")
    await client.aclose()
    with pytest.raises(ClientClosed, match="open another one"):
        await client.health()
    with pytest.raises(ClientClosed):
        await anext(stream)
    plain = PipelineEngineClient("http://127.0.0.1:9", transport=httpx.MockTransport(Script(ok({"status": "ok"}))))
    plain.close()
    with pytest.raises(ClientClosed):
        plain.health()


def test_the_sdk_imports_neither_event_loop_nor_the_daemon() -> None:
    code = (
        "import sys, pipeline_engine_sdk; print([m for m in ('trio', 'pipeline_engine', 'quart') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == "[]\n"


def test_an_artifact_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    class Cut(httpx.SyncByteStream):
        def __iter__(self) -> Any:
            yield b"half"
            raise httpx.ReadError("cut")

    target = tmp_path / "image.png"
    answers = [httpx.Response(200, content=b"bytes"), httpx.Response(200, stream=Cut())]
    transport = httpx.MockTransport(lambda _: answers.pop(0))
    with PipelineEngineClient("http://127.0.0.1:9", transport=transport) as client:
        assert client.save_artifact("job_1", "abc", target) == 5
        target.unlink()
        with pytest.raises(ConnectionFailed, match="cut"):
            client.save_artifact("job_1", "abc", target)
    assert list(tmp_path.iterdir()) == []
