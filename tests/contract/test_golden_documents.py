"""What goes over the wire, to the byte: the events and the answer of a job, its errors, and the OpenAPI document.

A change of these files is a change for clients. GOLDEN=write writes them anew; then read the difference.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.api_setting import ApiSetting, body_of, ndjson, open_api
from tests.engine_setting import Json, Script, llm
from trio.testing import MockClock

from pipeline_engine import __version__
from pipeline_engine.errors import ErrorCode, ProviderError

GOLDEN = Path(__file__).parent / "golden"
RATE_LIMITED = ProviderError(
    ErrorCode.PROVIDER_RATE_LIMITED, "slow down", retryable=True, retry_after_s=2, details={"status": 429}
)
REFUSED = ProviderError(ErrorCode.PROVIDER_AUTH, "the key is not valid", details={"status": 401})
SCRIPTS = {
    "words": [Script(tokens=["one ", "two"])],
    "retried": [Script(tokens=["lost"], error=RATE_LIMITED), Script(tokens=["kept"])],
    "refused": [Script(tokens=[], error=REFUSED)],
    "silent": [Script(first=20)],
}
# One step after the other: what runs at the same time tells of itself in any order.
PIPELINE = [
    llm("draft", "words", name="Draft", prompt={"system": "Be brief.", "user": "Q: {{ sources[0].content }}"}),
    llm("check", "retried", mode="fanout", depends_on=["draft"], export_tag="checked", max_concurrency=1),
    {"id": "sum", "kind": "reduce", "depends_on": ["check"], "config": {"reduce": "collect"}, "output_type": "json"},
    {"id": "never", "kind": "map", "depends_on": ["sum"], "config": {"map": "identity"}, "when": "false"},
]


def settle(value: Any, job_ids: dict[str, str]) -> Any:
    """The value with stand-ins for what differs from run to run: times, ids, and how long a call took."""
    if isinstance(value, dict):
        fixed = {"latency_ms": 0, "version": "VERSION"} if value.get("version") == __version__ else {"latency_ms": 0}
        return {key: fixed.get(key, settle(part, job_ids)) for key, part in value.items()}
    if isinstance(value, list):
        return [settle(part, job_ids) for part in value]
    if isinstance(value, str):
        value = re.sub(r"job_[0-9a-z]{26}", lambda match: job_ids.setdefault(match[0], f"JOB-{len(job_ids)}"), value)
        return re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$", "TIME", value)
    return value


def compare(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def lines(events: list[Json]) -> str:
    job_ids: dict[str, str] = {}
    return "".join(json.dumps(settle(event, job_ids), ensure_ascii=False) + "\n" for event in events)


def document(value: object) -> str:
    return json.dumps(settle(value, {}), ensure_ascii=False, indent=2) + "\n"


async def stream(api: ApiSetting, body: Json) -> list[Json]:
    return ndjson((await api.ask("POST", "/v1/jobs?stream=true", body)).body)


async def test_a_job_that_succeeds(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SCRIPTS) as api:
        body = body_of(PIPELINE, ["why?"], labels={"team": "a"}, priority=1)
        events = await stream(api, body)
        compare("succeeded.ndjson", lines(events))
        job_id = events[0]["job_id"]
        compare("job.json", document((await api.ask("GET", f"/v1/jobs/{job_id}?include=chunks")).json))
        compare("jobs.json", document((await api.ask("GET", "/v1/jobs")).json))
        compare("checkpoints.json", document((await api.ask("GET", f"/v1/jobs/{job_id}/checkpoints")).json))
        rerun = await api.ask("POST", f"/v1/jobs/{job_id}/rerun", {"from_step_id": "sum", "reuse_upstream": True})
        compare("rerun.ndjson", lines(await api.events(rerun.json["job"]["id"])))


async def test_a_job_that_fails(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SCRIPTS) as api:
        steps = [llm("a", "refused"), llm("b", depends_on=["a"])]
        compare("failed.ndjson", lines(await stream(api, body_of(steps))))


async def test_a_job_that_is_cancelled(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SCRIPTS) as api:
        job = await api.submit([llm("a", "silent"), llm("b", depends_on=["a"])])
        await trio.sleep(1)
        answer = await api.ask("POST", f"/v1/jobs/{job['id']}/cancel", {"reason": "user aborted"})
        compare("cancelled.json", document(answer.json))
        compare("cancelled.ndjson", lines(await api.events(job["id"])))


async def test_a_silent_stream(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SCRIPTS) as api:
        events = await stream(api, body_of([llm("a", "silent")]))
        compare("heartbeat.ndjson", lines([event for event in events if event["event"] == "heartbeat"]))


@pytest.mark.parametrize(
    ("name", "method", "target", "body"),
    [
        ("invalid_request", "POST", "/v1/jobs", {"pipeline_type": 5, "bogus": 1}),
        ("unknown_pipeline", "POST", "/v1/jobs", {"pipeline_type": "none"}),
        ("not_found", "GET", "/v1/jobs/job_none", None),
        ("method_not_allowed", "PUT", "/v1/jobs", None),
    ],
)
async def test_errors(autojump_clock: MockClock, name: str, method: str, target: str, body: object) -> None:
    async with open_api() as api:
        compare(f"error_{name}.json", document((await api.ask(method, target, body)).json))


async def test_profiles_and_metrics(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        profile = {"id": "p", "kind": "ollama", "base_uri": "127.0.0.1:9", "api_key": "sk", "default_model": "m"}
        compare("profile.json", document((await api.ask("POST", "/v1/config/providers", profile)).json))
        compare("metrics.json", document((await api.ask("GET", "/v1/metrics")).json))


async def test_the_openapi_document(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        compare("openapi.json", document((await api.ask("GET", "/openapi.json")).json))
