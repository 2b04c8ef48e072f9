"""Health and metrics. Virtual time."""

from __future__ import annotations

import time

import trio
import trio.lowlevel
from prometheus_client.parser import text_string_to_metric_families
from tests.api_setting import open_api
from tests.engine_setting import Script, llm
from trio.testing import MockClock

from pipeline_engine import __version__
from pipeline_engine.errors import ErrorCode, StepError

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


def values_of(text: str) -> dict[str, float]:
    """Each sample by its name and labels, as Prometheus' own parser reads them, without our prefix."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            name = sample.name.removeprefix("pipeline_engine_") + (f"{{{labels}}}" if labels else "")
            assert name not in found
            found[name] = float(sample.value)
    return found


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
            "pipeline_engine_steps_running 1",
            'pipeline_engine_steps_finished_total{status="success"} 1',
            'pipeline_engine_handler_threads{state="running"} 0',
            'pipeline_engine_handler_threads{state="abandoned"} 0',
            "pipeline_engine_followers 1",
            "pipeline_engine_store_healthy 1",
            "# TYPE pipeline_engine_provider_calls_total counter",
            'pipeline_engine_provider_first_token_seconds_bucket{kind="openai",le="+Inf"} 1',
            'pipeline_engine_provider_tokens_total{kind="openai",direction="prompt"} 1',
            "# TYPE pipeline_engine_provider_first_token_seconds histogram",
            'pipeline_engine_provider_retries_total{kind="openai"} 0',
        ):
            assert line in text.split("\n"), line
        values = values_of(text)
        assert values["store_commits_total"] == values["store_commit_seconds_count"] > 3
        assert values["store_commit_seconds_bucket{le=+Inf}"] == values["store_commit_seconds_count"]
        assert values["store_bytes"] > 0
        assert values["store_file_bytes"] == 0
        assert (values["store_queue_operations"], values["store_queue_bytes"], values["store_wal_bytes"]) == (0, 0, 0)


async def test_steps_are_counted_by_how_they_ended(autojump_clock: MockClock) -> None:
    broken = Script(error=StepError(ErrorCode.PROVIDER_AUTH, "no"))
    async with open_api(scripts={"broken": [broken]}) as api:
        await api.run([llm("a"), llm("b", "broken", on_error="continue"), llm("c", depends_on=["b"])])
        values = values_of((await api.ask("GET", "/metrics")).body.decode())
        ended = {
            status: values[f"steps_finished_total{{status={status}}}"] for status in ("success", "failed", "skipped")
        }
        assert ended == {"success": 1, "failed": 1, "skipped": 1}
        assert values["steps_running"] == 0


async def test_definition_files_that_cannot_be_used_are_counted(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        for broken in (["a.yaml: no", "b.yaml: no"], []):
            api.setting.pipelines.replace_fixed((), broken_files=broken)
            values = values_of((await api.ask("GET", "/metrics")).body.decode())
            assert values["definition_files_broken"] == len(broken)


async def test_a_turn_of_the_event_loop_that_takes_long_is_seen() -> None:
    async with open_api() as api:
        lag = api.api.loop_lag
        trio.lowlevel.add_instrument(lag)
        try:
            before = values_of((await api.ask("GET", "/metrics")).body.decode())
            time.sleep(0.03)  # noqa: ASYNC251 - that is what is measured
            await trio.lowlevel.checkpoint()
            await trio.sleep(0.001)
            after = values_of((await api.ask("GET", "/metrics")).body.decode())
        finally:
            trio.lowlevel.remove_instrument(lag)
    grown = {
        bound: after[f"event_loop_lag_seconds_bucket{{le={bound}}}"]
        - before[f"event_loop_lag_seconds_bucket{{le={bound}}}"]
        for bound in ("0.025", "+Inf")
    }
    assert grown["+Inf"] > grown["0.025"]
    assert after["event_loop_lag_seconds_sum"] - before["event_loop_lag_seconds_sum"] >= 0.03
