"""Health and metrics. Virtual time."""

from __future__ import annotations

import re

import trio
from tests.api_setting import open_api
from tests.engine_setting import Script, llm
from trio.testing import MockClock

from pipeline_engine import __version__

KINDS = {"openai", "ollama", "image", "local_tool"}


async def test_health_tells_version_and_uptime(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        body = (await api.ask("GET", "/health")).json
        assert (body["status"], body["version"]) == ("ok", __version__)
        assert body["uptime_sec"] >= 0


async def test_a_daemon_that_drains_is_alive_and_not_ready(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        assert (await api.ask("GET", "/health/ready")).json == {"status": "ready"}
        await api.setting.engine.drain(0)
        answer = await api.ask("GET", "/health/ready")
        assert (answer.status, answer.error["code"]) == (503, "unavailable")
        assert (await api.ask("GET", "/health")).status == 200


async def test_provider_metrics_have_exactly_four_names_and_every_kind(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        metrics = (await api.ask("GET", "/v1/metrics")).json
        names = ["provider_call_count", "provider_call_latency", "provider_call_errors", "provider_chunk_count"]
        assert sorted(metrics) == sorted(names)
        assert all(set(counts) == KINDS and all(type(n) is int for n in counts.values()) for counts in metrics.values())


async def test_prometheus_text_counts_jobs_and_followers(autojump_clock: MockClock) -> None:
    async with open_api(scripts={"slow": [Script(first=60)]}) as api:
        await api.run([llm("a")])
        job = await api.submit([llm("a", "slow")])
        async with api.open("GET", f"/v1/jobs/{job['id']}/stream"):
            await trio.sleep(1)
            answer = await api.ask("GET", "/metrics")
        text = answer.body.decode()
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        for line in (
            'pipeline_engine_jobs{status="running"} 1',
            'pipeline_engine_jobs_finished_total{status="succeeded"} 1',
            "pipeline_engine_followers 1",
            "pipeline_engine_store_healthy 1",
            "# TYPE pipeline_engine_provider_calls_total counter",
            'pipeline_engine_provider_first_token_seconds_bucket{kind="openai",le="+Inf"} 0',
            'pipeline_engine_provider_tokens_total{kind="openai",direction="prompt"} 0',
            "# TYPE pipeline_engine_provider_first_token_seconds histogram",
            'pipeline_engine_provider_retries_total{kind="openai"} 0',
        ):
            assert line in text.split("\n"), line
        sample = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")?\})? [0-9.e+-]+')
        assert all(line.startswith("# ") or sample.fullmatch(line) for line in text.removesuffix("\n").split("\n"))
