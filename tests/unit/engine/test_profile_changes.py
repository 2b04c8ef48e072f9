"""Profiles that change, go and come again while jobs use them. Virtual time."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from tests.engine_setting import Script, ScriptedRegistry, fake_profile, llm, open_setting
from trio.testing import MockClock

from pipeline_engine.decoding import Secret
from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.models import JobStatus


def slow(**extra: Any) -> ScriptedRegistry:
    return ScriptedRegistry({"slow": [Script(echo=True, first=10)]}, **extra)


async def test_a_profile_that_changes_keeps_one_limit_for_all_jobs(autojump_clock: MockClock) -> None:
    registry = slow(max_concurrency=2)
    steps = [llm("a", "slow", mode="fanout", max_concurrency=20)]
    async with open_setting(registry=registry) as setting:
        for most in (2, 3, 2, 1):
            registry.put(fake_profile(max_concurrency=most))
            await setting.submit(steps, list("abcdefghij"))
            await trio.sleep(0.5)
            assert registry.concurrency() == {"fake": most}
        assert registry.most_under_way == 3
        await trio.sleep(20)
        assert registry.under_way == 1


async def test_a_profile_that_is_removed_and_put_again_counts_what_still_runs(autojump_clock: MockClock) -> None:
    registry = slow(max_concurrency=1)
    async with open_setting(registry=registry) as setting:
        first = await setting.submit([llm("a", "slow")])
        await trio.sleep(1)
        registry.remove("fake")
        assert registry.concurrency() == {}
        await trio.sleep(1)
        registry.put(fake_profile(max_concurrency=1))
        second = await setting.submit([llm("a", "slow")])
        for job in (first, second):
            assert (await setting.engine.wait(job.id)).status is JobStatus.SUCCEEDED
        assert registry.most_under_way == 1
        await trio.sleep(1)
        registry.remove("fake")
        assert registry.limited() == {}


async def test_what_has_not_begun_goes_by_the_profile_in_force(autojump_clock: MockClock) -> None:
    """Items that wait for a permit, those that come after them, and retries."""
    broken = ProviderError(ErrorCode.PROVIDER_ERROR, "broken", retryable=True, retry_after_s=0)
    registry = ScriptedRegistry(
        {"old": [Script(first=10), Script(first=10, error=broken), Script(first=10)]}, max_concurrency=1
    )
    step = llm("a", mode="fanout", max_concurrency=2, provider_override={})

    def use(base_uri: str, model: str, key: str) -> None:
        registry.put(fake_profile(base_uri, max_concurrency=1, model=model, api_key=Secret(key)))

    async with open_setting(registry=registry) as setting:
        use("http://a", "old", "1")
        job = await setting.submit([step], ["x", "y", "z"])
        await trio.sleep(5)
        use("http://b", "old", "2")
        await trio.sleep(10)
        use("http://c", "new", "3")
        job = await setting.engine.wait(job.id)
        assert job.status is JobStatus.SUCCEEDED
        seen = [
            (call.messages[-1].content, call.target.base_uri, call.target.model, call.target.api_key)
            for call in registry.calls
        ]
        assert sorted(seen) == [
            ("x", "http://a", "old", Secret("1")),
            ("y", "http://b", "old", Secret("2")),
            ("y", "http://c", "new", Secret("3")),
            ("z", "http://c", "new", Secret("3")),
        ]
        assert job.result is not None
        assert [item.data["model"] for item in job.result.items] == ["old", "new", "new"]


@pytest.mark.parametrize(("of_profile", "of_step"), [(1, None), (None, 1), (5, 1)])
async def test_what_waits_for_a_profile_that_is_removed_fails_at_once(
    of_profile: int | None, of_step: int | None, autojump_clock: MockClock
) -> None:
    registry = slow(requests_per_minute=of_profile)
    override = {"default_model": "slow", "requests_per_minute": of_step}
    step = llm("a", mode="fanout", on_item_error="skip", provider_override=override)
    async with open_setting(registry=registry) as setting:
        job = await setting.submit([step], ["x", "y"])
        await trio.sleep(1)
        registry.remove("fake")
        began = trio.current_time()
        job = await setting.engine.wait(job.id)
        assert trio.current_time() - began < 10
        assert job.status is JobStatus.SUCCEEDED
        assert job.result is not None
        assert [item.data["text"] for item in job.result.items] == ["x"]
        [execution] = job.step_executions or []
        [error] = execution.errors
        assert error.message == "there is no provider profile 'fake'"
        assert "attempt" not in error.details


async def test_a_profile_that_is_put_again_has_the_limits_of_its_steps_again(autojump_clock: MockClock) -> None:
    registry = slow()
    override = {"default_model": "slow", "max_concurrency": 1}
    step = llm("a", mode="fanout", provider_override=override)
    async with open_setting(registry=registry) as setting:
        await setting.submit([step], ["x"])
        await trio.sleep(1)
        registry.remove("fake")
        await trio.sleep(1)
        registry.put(fake_profile())
        job = await setting.submit([step], ["y", "z"])
        assert (await setting.engine.wait(job.id)).status is JobStatus.SUCCEEDED
        assert (len(registry.calls), registry.most_under_way) == (3, 1)


async def test_limits_of_a_step_that_are_also_the_profiles_stay_when_the_profile_changes(
    autojump_clock: MockClock,
) -> None:
    registry = slow(max_concurrency=2)
    override = {"default_model": "slow", "max_concurrency": 2}
    step = llm("a", mode="fanout", max_concurrency=8, provider_override=override)
    async with open_setting(registry=registry) as setting:
        job = await setting.submit([step], list("abcdefgh"))
        await trio.sleep(1)
        registry.put(fake_profile(max_concurrency=30))
        assert (await setting.engine.wait(job.id)).status is JobStatus.SUCCEEDED
        assert (len(registry.calls), registry.most_under_way) == (8, 2)


async def test_headers_of_a_step_do_not_follow_its_profile_to_another_server(autojump_clock: MockClock) -> None:
    registry = slow(max_concurrency=1)
    override = {"default_model": "slow", "headers": {"x-key": "secret"}}
    step = llm("a", mode="fanout", provider_override=override)
    async with open_setting(registry=registry) as setting:
        registry.put(fake_profile("http://a/v1", max_concurrency=1))
        job = await setting.submit([step], ["x", "y", "z"])
        await trio.sleep(1)
        registry.put(fake_profile("http://a/v2", max_concurrency=1))
        await trio.sleep(10)
        registry.put(fake_profile("http://b/v2", max_concurrency=1))
        job = await setting.engine.wait(job.id)
        assert job.error is not None
        assert job.error.message.startswith("the profile 'fake' leads to another server now")
        assert [call.target.base_uri for call in registry.calls] == ["http://a/v1", "http://a/v2"]
