"""What the clients of version 0.2 rely on: addresses, statuses, names of keys, the order of events."""

from __future__ import annotations

import pytest
from tests.api_setting import body_of, ndjson, open_api
from tests.engine_setting import Json, Script, llm, names
from trio.testing import MockClock

JOB = {"id", "pipeline_type", "pipeline_version", "status", "created_at", "updated_at", "input", "result", "mode"}
EXECUTION = {"step_id", "status", "started_at", "finished_at"}
ITEM = {"id", "label", "step_id", "kind", "content_type", "data"}
STEPS = [llm("a", "abc", name="First"), llm("b", depends_on=["a"], export_tag="last")]
SCRIPTS = {"abc": [Script(tokens="abc")], "slow": [Script(first=30)]}


async def test_a_job_and_its_parts_have_their_keys(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SCRIPTS) as api:
        job = await api.run(STEPS, ["x"])
        assert job.keys() >= JOB | {"step_executions", "reuse_upstream"}
        source = {"kind": "note", "label": "s", "content": "x", "metadata": {}}
        assert job["input"] == {"sources": [source], "options": {}}
        assert job["result"].keys() == {"items", "meta"}
        assert all(execution.keys() >= EXECUTION for execution in job["step_executions"])
        first, last = job["result"]["items"]
        assert (first.keys() >= ITEM, last["tag"], last["is_primary"]) == (True, "last", True)
        assert (first["label"], last["label"]) == ("First", "b")
        assert first["data"].keys() >= {"text", "prompt", "provider", "model"}
        assert first["data"]["text"] == "abc"


async def test_a_shard_has_its_key_and_its_number(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        job = await api.run([llm("f", mode="fanout", name="Fan")], ["x", "y"])
        shown = [(item["shard_key"], item["label"]) for item in job["result"]["items"]]
        assert shown == [("f-0", "Fan#1"), ("f-1", "Fan#2")]


async def test_events_come_in_their_order(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SCRIPTS) as api:
        answer = await api.ask("POST", "/v1/jobs?stream=true", body_of(STEPS, ["x"]))
        events = ndjson(answer.body)
        assert all(event.keys() == {"seq", "event", "job_id", "ts", "data"} for event in events)
        known = ("job_", "step_started", "step_completed", "provider_chunk", "item_completed", "stream_finished")
        assert [name for name in names(events) if name.startswith(known)] == [
            "job_queued",
            "job_started",
            "job_status",
            "step_started",
            *["provider_chunk"] * 3,
            "item_completed",
            "step_completed",
            "step_started",
            "provider_chunk",
            "item_completed",
            "step_completed",
            "job_status",
            "job_completed",
            "stream_finished",
        ]
        [queued, *_] = events
        assert queued["data"]["status"] == "queued"
        assert events[-1]["data"] == {
            "status": "succeeded",
            "resume_token": {"job_id": queued["job_id"], "seq": events[-1]["seq"]},
        }
        chunk = next(event["data"] for event in events if event["event"] == "provider_chunk")
        assert chunk.keys() >= {"step_id", "index", "content"}


@pytest.mark.parametrize(
    ("method", "target", "body", "status"),
    [
        ("GET", "/health", None, 200),
        ("POST", "/v1/jobs", body_of(STEPS), 202),
        ("POST", "/v1/jobs", body_of(STEPS, mode="sync"), 200),
        ("POST", "/v1/jobs?stream=true", body_of(STEPS), 200),
        ("GET", "/v1/jobs/JOB", None, 200),
        ("GET", "/v1/jobs/JOB/stream", None, 200),
        ("GET", "/v1/jobs/JOB/stream?after_seq=2", None, 200),
        ("POST", "/v1/jobs/JOB/cancel", {"reason": "x"}, 200),
        ("POST", "/v1/jobs/JOB/cancel", None, 200),
        ("POST", "/v1/jobs/JOB/rerun", {}, 202),
        ("POST", "/v1/jobs/JOB/rerun", {"from_step_id": "b", "reuse_upstream": True, "override_input": None}, 202),
        ("GET", "/v1/config/pipelines", None, 200),
        ("POST", "/v1/config/providers", {"id": "x", "kind": "openai", "base_uri": "http://127.0.0.1:9"}, 200),
        ("POST", "/v1/config/engine", {"log_level": "info"}, 200),
        ("GET", "/v1/metrics", None, 200),
        ("GET", "/v1/jobs/none", None, 404),
        ("POST", "/v1/jobs", {}, 400),
    ],
)
async def test_calls_have_their_statuses(
    autojump_clock: MockClock, method: str, target: str, body: Json | None, status: int
) -> None:
    async with open_api(scripts=SCRIPTS) as api:
        job = await api.run(STEPS, ["x"])
        answer = await api.ask(method, target.replace("JOB", job["id"]), body)
        assert answer.status == status, answer.body
        if status >= 400:
            assert answer.json.keys() == {"error"}
            assert answer.error.keys() == {"code", "message", "details"}


async def test_a_finished_job_that_is_cancelled_stays_as_it_is(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SCRIPTS) as api:
        job = await api.run(STEPS, ["x"])
        answer = await api.ask("POST", f"/v1/jobs/{job['id']}/cancel")
        assert answer.json == {"job": job}
