"""Retries: pauses, numbers, what voids what; loading models. Virtual time."""

from __future__ import annotations

import random

import pytest
import trio
from tests.engine_setting import Script, ScriptedRegistry, llm, open_setting
from trio.testing import MockClock

from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.models import JobStatus, Retry
from pipeline_engine.steps.retry import pause_before_retry, pause_while_loading


def broken(*, retry_after_s: float | None = None, retryable: bool = True) -> ProviderError:
    code = ErrorCode.PROVIDER_RATE_LIMITED
    details = {"status": 503}
    return ProviderError(code, "slow down", retryable=retryable, retry_after_s=retry_after_s, details=details)


def test_pauses_grow_with_full_jitter_up_to_their_bound() -> None:
    retry = Retry(max_attempts=100, backoff_s=1, max_backoff_s=8)
    jitter = random.Random(1)
    for failures, bound in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 8), (99, 8)):
        pauses = [pause_before_retry(broken(), failures=failures, retry=retry, jitter=jitter) for _ in range(200)]
        assert all(pause is not None and 0 <= pause <= bound for pause in pauses)
        assert max(pause or 0 for pause in pauses) > bound * 0.9


def test_what_the_provider_asks_for_goes_first_unless_it_is_too_long() -> None:
    retry = Retry(max_attempts=3, backoff_s=1, max_backoff_s=60)
    jitter = random.Random(1)
    assert pause_before_retry(broken(retry_after_s=0), failures=1, retry=retry, jitter=jitter) == 0
    assert pause_before_retry(broken(retry_after_s=60), failures=2, retry=retry, jitter=jitter) == 60
    assert pause_before_retry(broken(retry_after_s=61), failures=1, retry=retry, jitter=jitter) is None


def test_the_last_attempt_and_final_errors_have_no_successor() -> None:
    retry = Retry(max_attempts=2)
    jitter = random.Random(1)
    assert pause_before_retry(broken(), failures=2, retry=retry, jitter=jitter) is None
    assert pause_before_retry(broken(retryable=False), failures=1, retry=retry, jitter=jitter) is None


def test_looks_at_a_loading_server_become_rarer() -> None:
    pauses = [pause_while_loading(polls, asked_s=None) for polls in range(20)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.25, 2.0)


def test_a_loading_server_may_ask_for_longer_pauses_and_not_for_shorter_ones() -> None:
    assert [pause_while_loading(0, asked_s=asked) for asked in (0, 0.1, 30)] == [0.25, 0.25, 30]


async def test_a_new_attempt_voids_what_the_one_before_has_shown(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"m": [Script(tokens="ab", error=broken(retry_after_s=5)), Script(tokens="xyz")]})
    async with open_setting(registry=registry) as setting:
        began = trio.current_time()
        job = await setting.run([llm("a", "m")], ["go"])
        assert trio.current_time() - began == pytest.approx(5)
        assert job.status is JobStatus.SUCCEEDED
        events = setting.stored_events(job.id)
        chunks = [e["data"] for e in events if e["event"] == "provider_chunk"]
        assert [(c["attempt"], c["index"], c["content"]) for c in chunks] == [
            (1, 0, "a"),
            (1, 1, "b"),
            (2, 0, "x"),
            (2, 1, "y"),
            (2, 2, "z"),
        ]
        [retrying] = [e["data"] for e in events if e["event"] == "step_retrying"]
        assert (retrying["step_id"], retrying["attempt"], retrying["delay_s"]) == ("a", 2, 5)
        assert retrying["error"]["details"]["status"] == 503
        starts = [e["data"]["attempt"] for e in events if e["event"] == "item_started"]
        assert starts == [1, 2]
        [execution] = job.step_executions or []
        assert execution.attempts == 2


async def test_the_attempts_end_and_the_error_says_so(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"m": [Script(tokens=(), error=broken())]})
    async with open_setting(registry=registry) as setting:
        job = await setting.run([llm("a", "m", retry={"max_attempts": 4, "backoff_s": 0.1})], ["go"])
        assert job.error is not None
        assert (job.error.code, job.error.details["attempt"]) == ("provider_rate_limited", 4)
        assert len(registry.calls) == 4


async def test_a_pause_that_is_too_long_is_told(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"m": [Script(tokens=(), error=broken(retry_after_s=120))]})
    async with open_setting(registry=registry) as setting:
        job = await setting.run([llm("a", "m")], ["go"])
        assert job.error is not None
        assert job.error.message == "slow down; it asks to wait for 120 s, longer than retry.max_backoff_s (60 s)"
        assert len(registry.calls) == 1
    registry = ScriptedRegistry({"m": [Script(tokens=(), error=broken(retry_after_s=120))]})
    async with open_setting(registry=registry) as setting:
        job = await setting.run([llm("a", "m", retry={"max_attempts": 1})], ["go"])
        assert job.error is not None
        assert job.error.message == "slow down"


async def test_a_loading_model_costs_no_attempt_until_its_time_is_over(autojump_clock: MockClock) -> None:
    loading = ProviderError(ErrorCode.PROVIDER_ERROR, "loading", retryable=True, loading=True)
    answers = [Script(tokens=(), error=loading) for _ in range(6)]
    registry = ScriptedRegistry({"m": [*answers, Script()], "for ever": [Script(tokens=(), error=loading)]})
    async with open_setting(registry=registry) as setting:
        job = await setting.run([llm("a", "m", retry={"max_attempts": 1})], ["go"])
        assert job.status is JobStatus.SUCCEEDED
        [execution] = job.step_executions or []
        assert execution.attempts == 1
        notes = [e["data"] for e in setting.stored_events(job.id) if e["event"] == "step_progress"]
        assert len(notes) == 6
        assert all("loading" in note["note"] for note in notes)

        override = {"default_model": "for ever", "loading_timeout_s": 30}
        began = trio.current_time()
        job = await setting.run([llm("a", provider_override=override, retry={"max_attempts": 1})], ["go"])
        assert job.status is JobStatus.FAILED
        assert 30 <= trio.current_time() - began <= 33


async def test_what_a_loading_server_asks_for_is_waited_within_its_time(autojump_clock: MockClock) -> None:
    loading = ProviderError(ErrorCode.PROVIDER_ERROR, "loading", retryable=True, loading=True, retry_after_s=30)
    registry = ScriptedRegistry({"m": [*[Script(tokens=(), error=loading)] * 2, Script()]})
    async with open_setting(registry=registry) as setting:
        began = trio.current_time()
        job = await setting.run([llm("a", "m", retry={"max_attempts": 1})], ["go"])
        assert job.status is JobStatus.SUCCEEDED
        assert trio.current_time() - began == pytest.approx(60)
    registry = ScriptedRegistry({"m": [Script(tokens=(), error=loading)]})
    async with open_setting(registry=registry) as setting:
        began = trio.current_time()
        override = {"default_model": "m", "loading_timeout_s": 50}
        job = await setting.run([llm("a", provider_override=override, retry={"max_attempts": 1})], ["go"])
        assert job.status is JobStatus.FAILED
        assert trio.current_time() - began == pytest.approx(30)


async def test_polls_of_a_server_that_loads_a_model_are_no_calls_of_the_budget(autojump_clock: MockClock) -> None:
    loading = ProviderError(ErrorCode.PROVIDER_ERROR, "loading", loading=True)
    registry = ScriptedRegistry({"m": [*[Script(tokens=(), error=loading)] * 5, Script()]})
    async with open_setting(registry=registry) as setting:
        job = await setting.run([llm("a", "m")], ["x"], limits={"max_provider_calls": 1})
        assert job.status is JobStatus.SUCCEEDED
        assert len(registry.calls) == 6


async def test_limits_of_a_request_leave_the_others_of_the_pipeline_in_force(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry()
    async with open_setting(registry=registry) as setting:
        job = await setting.run(
            [llm("a", mode="fanout")],
            ["1", "2", "3"],
            limits={"max_total_tokens": 1000},
            pipeline={"limits": {"max_provider_calls": 2, "max_total_tokens": 1}},
        )
        assert job.error is not None
        assert job.error.code == ErrorCode.BUDGET_EXCEEDED
        assert len(registry.calls) == 2


@pytest.mark.parametrize("limits", [{"max_total_tokens": 3}, {"max_provider_calls": 1}])
async def test_calls_that_wait_for_the_provider_are_not_made_once_the_budget_is_spent(
    autojump_clock: MockClock, limits: dict[str, int]
) -> None:
    registry = ScriptedRegistry({"slow": [Script(first=1)]}, max_concurrency=1)
    async with open_setting(registry=registry) as setting:
        job = await setting.run([llm("a", "slow", mode="fanout")], list("12345678"), limits=limits)
        assert job.error is not None
        assert (job.error.code, job.error.details["shard_key"]) == ("budget_exceeded", "a-1")
        assert len(registry.calls) == 1
