"""The limits in virtual time."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pipeline_engine.providers.limits import NO_LIMITS, LimitSettings, ProfileLimits, ProviderLimiter


class Calls:
    """Starts calls and notes in which order, and when, they got their permits."""

    def __init__(self, limits: ProviderLimiter | ProfileLimits, nursery: trio.Nursery) -> None:
        self.limits = limits
        self.nursery = nursery
        self.order: list[str] = []
        self.times: list[float] = []
        self.ends: dict[str, trio.Event] = {}

    def start(
        self,
        name: str,
        *,
        job: str = "job",
        tokens: int = 0,
        outcome: str = "succeeded",
        override: LimitSettings = NO_LIMITS,
    ) -> trio.CancelScope:
        scope = trio.CancelScope()
        self.ends[name] = trio.Event()

        async def call() -> None:
            with scope:
                async with self.limits.permit(job_id=job, tokens=tokens, override=override) as permit:
                    self.order.append(name)
                    self.times.append(trio.current_time())
                    await self.ends[name].wait()
                    setattr(permit, outcome, True)

        self.nursery.start_soon(call)
        return scope

    async def settle(self, *ended: str) -> None:
        for name in ended:
            self.ends[name].set()
        await wait_all_tasks_blocked()


async def test_jobs_take_turns_and_the_calls_of_a_job_keep_their_order(nursery: trio.Nursery) -> None:
    calls = Calls(ProviderLimiter(LimitSettings(max_concurrency=1)), nursery)
    for name, job in [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("b2", "b"), ("c1", "c")]:
        calls.start(name, job=job)
        await wait_all_tasks_blocked()
    for name in ("a1", "a2", "b1", "c1", "a3", "b2"):
        await calls.settle(name)
    assert calls.order == ["a1", "a2", "b1", "c1", "a3", "b2"]


async def test_no_more_calls_than_the_limit_run_at_once(nursery: trio.Nursery) -> None:
    limiter = ProviderLimiter(LimitSettings(max_concurrency=2))
    calls = Calls(limiter, nursery)
    for name in "abcd":
        calls.start(name)
    await wait_all_tasks_blocked()
    assert (len(calls.order), limiter.in_flight, limiter.waiting) == (2, 2, 2)
    await calls.settle(*"abcd")
    assert (len(calls.order), limiter.in_flight, limiter.waiting) == (4, 0, 0)


async def test_a_cancelled_waiter_leaves_at_once_and_leaks_no_permit(nursery: trio.Nursery) -> None:
    limiter = ProviderLimiter(LimitSettings(max_concurrency=1))
    calls = Calls(limiter, nursery)
    calls.start("a")
    await wait_all_tasks_blocked()
    scopes = [calls.start(f"w{n}") for n in range(300)]
    calls.start("z")
    await wait_all_tasks_blocked()
    for scope in scopes:
        scope.cancel()
    await wait_all_tasks_blocked()
    assert limiter.waiting == 1
    await calls.settle("a")
    assert calls.order == ["a", "z"]
    await calls.settle("z")
    assert limiter.in_flight == 0


async def test_a_call_cancelled_while_its_permit_arrives_gives_it_back(nursery: trio.Nursery) -> None:
    limiter = ProviderLimiter(LimitSettings(max_concurrency=1))
    calls = Calls(limiter, nursery)
    first, second = calls.start("a"), calls.start("b")
    calls.start("c")
    await wait_all_tasks_blocked()
    first.cancel()
    second.cancel()
    await wait_all_tasks_blocked()
    assert calls.order[-1] == "c"
    assert limiter.in_flight == 1
    calls.ends["c"].set()


async def test_a_minute_never_holds_more_requests_than_the_limit(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    calls = Calls(ProviderLimiter(LimitSettings(requests_per_minute=3)), nursery)
    begin = trio.current_time()
    for n in range(8):
        calls.start(f"c{n}")
        calls.ends[f"c{n}"].set()
    await trio.sleep(121)
    assert [round(time - begin) for time in calls.times] == [0, 0, 0, 60, 60, 60, 120, 120]


async def test_cancelling_the_call_that_keeps_the_time_does_not_stop_the_others(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    calls = Calls(ProviderLimiter(LimitSettings(requests_per_minute=1)), nursery)
    begin = trio.current_time()
    calls.start("a")
    await wait_all_tasks_blocked()
    head = calls.start("b")
    await wait_all_tasks_blocked()
    calls.start("c")
    await trio.sleep(30)
    head.cancel()
    await trio.sleep(31)
    assert calls.order == ["a", "c"]
    assert calls.times[-1] - begin == pytest.approx(60)
    await calls.settle("a", "c")


async def test_token_estimates_are_replaced_by_what_was_used(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    limiter = ProviderLimiter(LimitSettings(tokens_per_minute=100))
    begin = trio.current_time()
    async with limiter.permit(job_id="a", tokens=90) as permit:
        permit.tokens_used = 20
    async with limiter.permit(job_id="a", tokens=80):
        assert trio.current_time() == begin
    async with limiter.permit(job_id="a", tokens=10):
        assert trio.current_time() - begin == pytest.approx(60)


async def test_a_call_larger_than_the_token_limit_goes_alone(autojump_clock: MockClock) -> None:
    limiter = ProviderLimiter(LimitSettings(tokens_per_minute=100))
    begin = trio.current_time()
    async with limiter.permit(job_id="a", tokens=5000):
        assert trio.current_time() == begin
    async with limiter.permit(job_id="a", tokens=5000):
        assert trio.current_time() - begin == pytest.approx(60)


async def test_a_429_halves_the_concurrency_once_and_success_restores_it(nursery: trio.Nursery) -> None:
    limiter = ProviderLimiter(LimitSettings(max_concurrency=8))
    calls = Calls(limiter, nursery)
    for n in range(8):
        calls.start(f"r{n}", outcome="rate_limited")
    await wait_all_tasks_blocked()
    await calls.settle(*(f"r{n}" for n in range(8)))
    assert limiter.concurrency == 4
    for n in range(40):
        calls.start(f"s{n}")
        await wait_all_tasks_blocked()
        await calls.settle(f"s{n}")
    assert limiter.concurrency == 8


async def test_the_concurrency_never_falls_below_one() -> None:
    limiter = ProviderLimiter(LimitSettings(max_concurrency=2))
    for _ in range(5):
        async with limiter.permit(job_id="a") as permit:
            permit.rate_limited = True
    assert limiter.concurrency == 1


async def test_without_limits_nothing_waits(nursery: trio.Nursery) -> None:
    limiter = ProviderLimiter(LimitSettings())
    calls = Calls(limiter, nursery)
    for n in range(500):
        calls.start(f"c{n}", outcome="rate_limited")
    await wait_all_tasks_blocked()
    assert limiter.in_flight == 500
    await calls.settle(*calls.ends)
    assert limiter.in_flight == 0


async def test_a_limit_that_changes_counts_what_runs_and_lets_go_who_waits(nursery: trio.Nursery) -> None:
    limiter = ProviderLimiter(LimitSettings(max_concurrency=2))
    calls = Calls(limiter, nursery)
    for name in "abcdef":
        calls.start(name)
        await wait_all_tasks_blocked()
    limiter.change(LimitSettings(max_concurrency=3))
    await wait_all_tasks_blocked()
    assert calls.order == ["a", "b", "c"]
    limiter.change(LimitSettings(max_concurrency=1))
    await calls.settle("a", "b")
    assert (limiter.in_flight, limiter.waiting) == (1, 3)
    await calls.settle("c")
    assert calls.order[-1] == "d"
    limiter.change(NO_LIMITS)
    await calls.settle(*"def")
    assert len(calls.order) == 6


async def test_a_concurrency_that_a_429_has_halved_stays_so_when_the_limit_changes() -> None:
    limiter = ProviderLimiter(LimitSettings(max_concurrency=8))
    async with limiter.permit(job_id="a") as permit:
        permit.rate_limited = True
    allowed = []
    for most in (16, 2, 8, None):
        limiter.change(LimitSettings(max_concurrency=most))
        allowed.append(limiter.concurrency)
    assert allowed == [4, 2, 8, float("inf")]


async def test_a_minute_with_more_room_is_used_at_once(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    limiter = ProviderLimiter(LimitSettings(requests_per_minute=1))
    calls = Calls(limiter, nursery)
    begin = trio.current_time()
    for n in range(4):
        calls.start(f"c{n}")
        calls.ends[f"c{n}"].set()
    await trio.sleep(10)
    limiter.change(LimitSettings(requests_per_minute=3))
    await trio.sleep(100)
    assert [round(time - begin) for time in calls.times] == [0, 10, 10, 60]


async def test_overrides_have_limits_of_their_own_where_they_say_something_else(autojump_clock: MockClock) -> None:
    limits = ProfileLimits(LimitSettings(max_concurrency=4, requests_per_minute=10))
    one = LimitSettings(max_concurrency=1)
    assert limits.get(NO_LIMITS) is limits.get(LimitSettings(max_concurrency=4)) is limits.own
    assert limits.get(one) is limits.get(LimitSettings(max_concurrency=1)) is not limits.own
    async with limits.permit(job_id="a", override=one):
        kept = limits.get(one)
        limits.change(LimitSettings(max_concurrency=8, requests_per_minute=1))
        limits.get(LimitSettings(max_concurrency=2))
        assert limits.get(one) is kept
        assert (kept.concurrency, limits.own.concurrency, limits.in_flight) == (1, 8, 1)
        with trio.move_on_after(50):
            async with limits.permit(job_id="b", override=one):
                raise AssertionError("it is one a minute")
    assert not limits.is_idle
    await trio.sleep(61)
    assert limits.is_idle


async def test_an_override_that_says_what_the_profile_says_shares_its_limits_until_either_changes(
    nursery: trio.Nursery,
) -> None:
    limits = ProfileLimits(LimitSettings(max_concurrency=2))
    two = LimitSettings(max_concurrency=2)
    calls = Calls(limits, nursery)
    for name in "abcd":
        calls.start(f"{name}1")
        await wait_all_tasks_blocked()
        calls.start(f"{name}2", override=two)
        await wait_all_tasks_blocked()
    assert calls.order == ["a1", "a2"]
    limits.change(LimitSettings(max_concurrency=3))
    await wait_all_tasks_blocked()
    assert set(calls.order[2:]) == {"b1", "c1", "b2"}
    assert (limits.own.in_flight, limits.get(two).in_flight, limits.waiting) == (3, 2, 3)
    limits.change(two)
    await calls.settle("a1", "a2", "b1")
    assert (limits.get(two) is limits.own, limits.in_flight, limits.waiting) == (True, 2, 3)
    limits.change(NO_LIMITS)
    await calls.settle("d1", "b2", "c1")
    assert (limits.own.in_flight, limits.get(two).in_flight) == (0, 2)
    await calls.settle("c2", "d2")
    assert (len(calls.order), limits.is_idle) == (8, True)


async def test_a_waiter_that_went_to_another_limiter_can_be_cancelled(nursery: trio.Nursery) -> None:
    limits = ProfileLimits(LimitSettings(max_concurrency=1))
    one = LimitSettings(max_concurrency=1)
    calls = Calls(limits, nursery)
    calls.start("a", override=one)
    await wait_all_tasks_blocked()
    scope = calls.start("b", override=one)
    calls.start("c", override=one)
    await wait_all_tasks_blocked()
    limits.change(NO_LIMITS)
    scope.cancel()
    await wait_all_tasks_blocked()
    assert (calls.order, limits.waiting) == (["a"], 1)
    await calls.settle("a", "c")
    assert (calls.order, limits.is_idle) == (["a", "c"], True)


async def test_minutes_go_with_the_calls_of_an_override(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    limits = ProfileLimits(LimitSettings(requests_per_minute=3))
    three = LimitSettings(requests_per_minute=3)
    calls = Calls(limits, nursery)
    begin = trio.current_time()
    for n, override in enumerate([three, three, NO_LIMITS, three, three, NO_LIMITS]):
        calls.start(f"c{n}", job="a" if override == three else "b", override=override)
        calls.ends[f"c{n}"].set()
        await trio.sleep(1)
    limits.change(LimitSettings(requests_per_minute=1))
    await trio.sleep(4)
    limits.change(three)
    await trio.sleep(100)
    assert list(zip(calls.order, (round(time - begin) for time in calls.times), strict=True)) == [
        ("c0", 0),
        ("c1", 1),
        ("c2", 2),
        ("c3", 6),  # the override has room for it, the profile has none
        ("c5", 61),  # there are four in the minute before
        ("c4", 62),
    ]


async def test_a_concurrency_that_a_429_has_halved_is_that_of_an_override_too(nursery: trio.Nursery) -> None:
    eight = LimitSettings(max_concurrency=8)
    limits = ProfileLimits(eight)
    async with limits.permit(job_id="a") as permit:
        permit.rate_limited = True
    async with limits.permit(job_id="a", override=eight):
        limits.change(NO_LIMITS)
        assert (limits.own.concurrency, limits.get(eight).concurrency) == (float("inf"), 4)
        limits.change(eight)
        assert limits.own.concurrency == 4
