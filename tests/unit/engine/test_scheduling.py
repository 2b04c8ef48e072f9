"""The DAG of a job: order, skips, failures, time limits; all in virtual time."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import trio
from tests.engine_setting import (
    Script,
    ScriptedRegistry,
    job_request,
    llm,
    names,
    open_setting,
    statuses,
    step_events,
    texts,
)
from trio.testing import MockClock

from pipeline_engine.errors import ErrorCode, InvalidRequestError, ProviderError
from pipeline_engine.models import Job, JobStatus, StepStatus
from pipeline_engine.store.base import JobChange, Operation
from pipeline_engine.store.memory import MemoryStore

BAD = Script(tokens=(), error=ProviderError(ErrorCode.PROVIDER_ERROR, "bad request"))


def scripted(**scripts: Script | list[Script]) -> ScriptedRegistry:
    return ScriptedRegistry({name: value if isinstance(value, list) else [value] for name, value in scripts.items()})


async def test_independent_steps_run_at_the_same_time_and_results_stand_as_written(autojump_clock: MockClock) -> None:
    registry = scripted(slow=Script(first=3), fast=Script(first=1))
    async with open_setting(registry=registry) as setting:
        began = trio.current_time()
        job = await setting.run([llm("a", "slow"), llm("b", "fast"), llm("c", "slow")])
        assert trio.current_time() - began == pytest.approx(3)
        assert job.result is not None
        assert [item.step_id for item in job.result.items] == ["a", "b", "c"]
        assert [item.is_primary for item in job.result.items] == [False, False, True]


async def test_a_diamond_sees_both_arms_and_runs_the_join_once(autojump_clock: MockClock) -> None:
    registry = scripted(echo=Script(echo=True))
    steps = [
        llm(
            "join", "echo", depends_on=["l", "r"], prompt={"user": "{{ previous.l[0].text }}+{{ previous.r[0].text }}"}
        ),
        llm("top", "echo", prompt={"user": "T"}),
        llm("l", "echo", depends_on=["top", "top"], prompt={"user": "L{{ previous.top[0].text }}"}),
        llm("r", "echo", depends_on=["top"], prompt={"user": "R{{ previous.top[0].text }}"}),
    ]
    async with open_setting(registry=registry) as setting:
        job = await setting.run(steps)
        assert texts(job, "join") == ["LT+RT"]
        events = list(step_events(setting.stored_events(job.id)))
        assert events.index(("step_completed", "top")) < events.index(("step_started", "l"))
        assert len(events) == len(set(events)) == 8


def reasons(job: Job) -> dict[str, str]:
    """Why each step that was skipped was."""
    return {one.step_id: one.reason for one in job.step_executions or () if one.reason is not None}


async def test_a_false_condition_skips_the_step_and_what_needs_it(autojump_clock: MockClock) -> None:
    steps = [
        llm("a"),
        llm("b", depends_on=["a"], when="previous.a[0].text == 'no'"),
        llm("c", depends_on=["a"]),
        llm("d", depends_on=["b", "c"], run_if_skipped=True, prompt={"user": "{{ previous.b | length }}"}),
        llm("e", depends_on=["b"]),
        llm("f", depends_on=["e", "c"]),
    ]
    async with open_setting() as setting:
        job = await setting.run(steps)
        assert job.status is JobStatus.SUCCEEDED
        assert statuses(job) == {
            "a": "success",
            "b": "skipped",
            "c": "success",
            "d": "success",
            "e": "skipped",
            "f": "skipped",
        }
        assert reasons(job) == {
            "b": "when is false: previous.a[0].text == 'no'",
            "e": "it needs b, which was skipped",
            "f": "it needs e, which was skipped",
        }
        ends = [step for event, step in step_events(setting.stored_events(job.id)) if event != "step_started"]
        assert sorted(ends) == ["a", "b", "c", "d", "e", "f"]
        assert isinstance(setting.registry, ScriptedRegistry)
        assert "0" in setting.registry.prompts


async def test_a_failed_step_cancels_its_siblings_and_skips_what_never_started(autojump_clock: MockClock) -> None:
    registry = scripted(bad=BAD, slow=Script(first=100))
    async with open_setting(registry=registry) as setting:
        began = trio.current_time()
        job = await setting.run([llm("bad", "bad"), llm("after", depends_on=["bad"]), llm("slow", "slow")])
        assert trio.current_time() - began < 1
        assert job.status is JobStatus.FAILED
        assert job.error is not None
        assert (job.error.code, job.error.details["step_id"]) == ("provider_error", "bad")
        assert statuses(job) == {"bad": "failed", "after": "skipped", "slow": "cancelled"}
        assert reasons(job) == {"after": "the job failed before it began"}
        assert registry.under_way == 0
        events = setting.stored_events(job.id)
        assert names(events)[-3:] == ["job_status", "job_failed", "stream_finished"]
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))


async def test_on_error_continue_skips_only_what_needs_the_step(autojump_clock: MockClock) -> None:
    registry = scripted(bad=BAD)
    steps = [llm("bad", "bad", on_error="continue"), llm("after", depends_on=["bad"]), llm("other")]
    async with open_setting(registry=registry) as setting:
        job = await setting.run(steps)
        assert job.status is JobStatus.SUCCEEDED
        assert statuses(job) == {"bad": "failed", "after": "skipped", "other": "success"}
        assert reasons(job) == {"after": "it needs bad, which failed"}
        assert texts(job) == ["ok"]


async def test_a_step_timeout_fails_the_job_not_the_daemon(autojump_clock: MockClock) -> None:
    registry = scripted(slow=Script(first=100))
    async with open_setting(registry=registry) as setting:
        began = trio.current_time()
        job = await setting.run([llm("a", "slow", timeout_s=2.5)])
        assert trio.current_time() - began == pytest.approx(2.5)
        assert job.error is not None
        assert (job.error.code, job.error.details["step_id"]) == ("timeout", "a")
        assert registry.under_way == 0
        assert (await setting.run([llm("b")])).status is JobStatus.SUCCEEDED


async def test_a_job_timeout_cancels_what_runs(autojump_clock: MockClock) -> None:
    registry = scripted(slow=Script(first=100))
    async with open_setting(registry=registry) as setting:
        began = trio.current_time()
        job = await setting.run([llm("a", "slow"), llm("b", depends_on=["a"])], timeout_s=4)
        assert trio.current_time() - began == pytest.approx(4)
        assert job.error is not None
        assert job.error.code == "timeout"
        assert statuses(job) == {"a": "cancelled", "b": "skipped"}
        assert registry.under_way == 0


async def test_a_pipeline_brings_its_own_timeout(autojump_clock: MockClock) -> None:
    registry = scripted(slow=Script(first=100))
    async with open_setting(registry=registry) as setting:
        job = await setting.run([llm("a", "slow")], pipeline={"timeout_s": 3})
        assert job.error is not None
        assert job.error.code == "timeout"


@pytest.mark.parametrize("when", ["options.missing", "1 / 0"])
async def test_a_condition_that_cannot_be_evaluated_fails_the_step(autojump_clock: MockClock, when: str) -> None:
    async with open_setting() as setting:
        job = await setting.run([llm("a", when=when)])
        assert job.error is not None
        assert job.error.code == "template_error"
        assert statuses(job) == {"a": "failed"}
        assert isinstance(setting.registry, ScriptedRegistry)
        assert setting.registry.calls == []


async def test_a_chain_of_two_thousand_skipped_steps_needs_no_deep_stack(autojump_clock: MockClock) -> None:
    steps = [llm("s0", when="false")] + [llm(f"s{n}", depends_on=[f"s{n - 1}"]) for n in range(1, 2000)]
    async with open_setting() as setting:
        job = await setting.run(steps)
        assert set(statuses(job).values()) == {"skipped"}


async def test_a_step_that_is_no_dependency_is_out_of_sight(autojump_clock: MockClock) -> None:
    async with open_setting() as setting:
        with pytest.raises(InvalidRequestError, match="previous names 'a'"):
            await setting.run([llm("a"), llm("b", prompt={"user": "{{ previous.a[0].text }}"})])
        assert setting.store.unfinished_jobs() == []


async def test_an_internal_error_fails_the_step_and_is_logged_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    registry = scripted(plain=Script(tokens=(1,)))  # type: ignore[arg-type]  # a chunk that is no text: a fault of ours
    async with open_setting(registry=registry) as setting:
        job = await setting.run([llm("a")])
        assert job.error is not None
        assert job.error.code == "internal"
        assert job.id in job.error.message
    assert sum("internal error" in record.message for record in caplog.records) == 1


async def test_an_end_that_cannot_be_stored_fails_its_job_alone(autojump_clock: MockClock) -> None:
    class Picky(MemoryStore):
        def write(self, operations: Iterable[Operation]) -> None:
            taken = list(operations)
            for operation in taken:
                if isinstance(operation, JobChange) and any(
                    event.name == "job_completed" for event in operation.events
                ):
                    raise ValueError("the result is too big")
            super().write(taken)

    async with open_setting(store=Picky()) as setting:
        job = await setting.run([llm("a")], ["x"])
        assert job.status is JobStatus.FAILED
        assert job.error is not None
        assert job.error.code == ErrorCode.INTERNAL
        events = setting.stored_events(job.id)
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert names(events)[-3:] == ["job_status", "job_failed", "stream_finished"]
        assert (await setting.run([llm("a", "other")], ["y"])).status is JobStatus.FAILED


async def test_a_chain_of_steps_that_wait_for_nothing_lets_others_run(autojump_clock: MockClock) -> None:
    length = 20
    chain = [llm(f"s{number}", depends_on=[f"s{number - 1}"] if number else []) for number in range(length)]
    async with open_setting() as setting:
        done: set[int] = set()
        await setting.engine.submit(job_request(chain, ["x"], dry_run=True))
        while length not in done:
            done.add(setting.engine.step_stats.ended[StepStatus.SUCCESS])
            await trio.lowlevel.checkpoint()
    assert len(done) > length / 2
