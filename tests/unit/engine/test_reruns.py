"""Running a job again: what is reused, what is taken over, and what is refused. Virtual time."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from typing import Any

import pytest
import trio
from tests.engine_setting import (
    Json,
    Script,
    ScriptedRegistry,
    Setting,
    job_request,
    llm,
    open_setting,
    statuses,
    texts,
)
from trio.testing import MockClock

from pipeline_engine.decoding import decode
from pipeline_engine.engine import EngineLimits
from pipeline_engine.errors import ErrorCode, InvalidRequestError, NotFoundError, ProviderError
from pipeline_engine.models import (
    Job,
    JobId,
    JobInput,
    JobMode,
    JobRequest,
    JobStatus,
    Limits,
    PipelineDef,
    RerunRequest,
    Source,
    StepId,
)
from pipeline_engine.pipelines import RegisteredPipeline
from pipeline_engine.steps.handlers import HandlerItem, Handlers
from pipeline_engine.store.memory import MemoryStore

BAD = ProviderError(ErrorCode.PROVIDER_ERROR, "bad")

STEPS = [
    llm("a", "A"),
    llm("b", "echo", depends_on=["a"], prompt={"user": "b:{{ previous.a[0].text }}:{{ sources[0].content }}"}),
    llm("c", "echo", depends_on=["b"], prompt={"user": "c:{{ previous.b[0].text }}"}),
    llm("side", "A"),
]


def rerun_registry() -> ScriptedRegistry:
    return ScriptedRegistry({"A": [Script(tokens="A")], "echo": [Script(echo=True)]})


async def test_a_rerun_reuses_all_that_is_not_downstream(autojump_clock: MockClock) -> None:
    registry = rerun_registry()
    async with open_setting(registry=registry) as setting:
        parent = await setting.run(STEPS, ["1"], labels={"k": "v"}, priority=7)
        registry.calls.clear()
        job = await setting.engine.rerun(parent.id, RerunRequest(from_step_id=StepId("b"), reuse_upstream=True))
        job = await setting.engine.wait(job.id)
        assert (job.parent_job_id, job.mode, job.rerun_from_step) == (parent.id, JobMode.RERUN, "b")
        assert (job.labels, job.priority) == ({"k": "v"}, 7)
        assert statuses(job) == {"a": "skipped", "b": "success", "c": "success", "side": "skipped"}
        assert texts(job) == ["A", "b:A:1", "c:b:A:1", "A"]
        assert len(registry.calls) == 2
        reused = {execution.step_id: execution.reused_from for execution in job.step_executions or ()}
        assert reused == {"a": parent.id, "b": None, "c": None, "side": parent.id}
        completed = [e["data"]["step_id"] for e in setting.stored_events(job.id) if e["event"] == "item_completed"]
        assert sorted(completed) == ["a", "b", "c", "side"]
        await setting.engine.delete(parent.id)
        again = await setting.engine.rerun(job.id, RerunRequest(from_step_id=StepId("c"), reuse_upstream=True))
        assert texts(await setting.engine.wait(again.id)) == texts(job)


async def test_a_rerun_by_a_request_takes_over_what_the_request_does_not_say(autojump_clock: MockClock) -> None:
    settings = {
        "labels": {"k": "v"},
        "priority": 7,
        "timeout_s": 60,
        "limits": {"max_provider_calls": 50, "max_total_tokens": 900},
    }
    async with open_setting(registry=rerun_registry()) as setting:
        parent = await setting.run(STEPS, ["1"], **settings)

        async def rerun(**request: Any) -> Job:
            return await setting.engine.submit(decode({"parent_job_id": parent.id, **request}, JobRequest))

        same = await rerun()
        assert (same.labels, same.priority, same.timeout_s, same.dry_run) == ({"k": "v"}, 7, 60, False)
        assert same.limits == Limits(max_provider_calls=50, max_total_tokens=900)
        other = await rerun(
            labels={"k": "w"}, priority=0, timeout_s=5, limits={"max_total_tokens": 10}, dry_run=True, mode="sync"
        )
        assert (other.labels, other.priority, other.timeout_s, other.dry_run) == ({"k": "w"}, 0, 5, True)
        assert other.limits == Limits(max_provider_calls=50, max_total_tokens=10)


async def test_a_dry_run_is_run_again_in_earnest_but_not_reused(autojump_clock: MockClock) -> None:
    registry = rerun_registry()
    async with open_setting(registry=registry) as setting:
        parent = await setting.run(STEPS, ["1"], dry_run=True)
        request = {"parent_job_id": parent.id, "dry_run": False}
        job = await setting.engine.submit(decode(request, JobRequest))
        assert texts(await setting.engine.wait(job.id)) == ["A", "b:A:1", "c:b:A:1", "A"]
        with pytest.raises(InvalidRequestError, match=r"reuse_upstream: .* was a dry run"):
            await setting.engine.submit(decode({**request, "reuse_upstream": True}, JobRequest))
        again = await setting.engine.rerun(parent.id, RerunRequest(reuse_upstream=True))
        assert again.dry_run


@pytest.mark.parametrize("request_", [{"mode": "rerun"}, {"from_step_id": "a"}, {"reuse_upstream": True}])
async def test_what_only_a_rerun_has_needs_a_parent(autojump_clock: MockClock, request_: dict[str, Any]) -> None:
    async with open_setting() as setting:
        with pytest.raises(InvalidRequestError, match=f"^{next(iter(request_))}: .*needs parent_job_id"):
            await setting.submit([llm("a")], **request_)


async def test_input_that_does_not_fit_a_rerun_is_named_as_it_was_sent_or_as_the_parents(
    autojump_clock: MockClock,
) -> None:
    definition = {"type": "p.v1", "steps": [llm("a")]}
    given = {"options": {"language": "en"}}
    async with open_setting() as setting:
        setting.pipelines.put(decode(definition, PipelineDef))
        parent = await setting.engine.submit(decode({"pipeline_type": "p.v1", "input": given}, JobRequest))
        await setting.engine.wait(parent.id)
        strict = {**definition, "options_schema": {"required": ["tone"]}}
        setting.pipelines.put(decode(strict, PipelineDef))

        async def fault_of(call: Awaitable[Job]) -> str:
            with pytest.raises(InvalidRequestError) as caught:
                await call
            return caught.value.message

        def by_request(**request: Any) -> Awaitable[Job]:
            asked = {"parent_job_id": parent.id, "pipeline_type": "p.v1", **request}
            return setting.engine.submit(decode(asked, JobRequest))

        def by_rerun(**request: Any) -> Awaitable[Job]:
            return setting.engine.rerun(parent.id, decode(request, RerunRequest))

        words, whose = "$: 'tone' is a required property", f"in the input of the parent {parent.id}: "
        assert await fault_of(by_request(input=given)) == f"input.options: {words}"
        assert await fault_of(by_request()) == f"input.options: {whose}{words}"
        assert await fault_of(by_rerun(override_input=given)) == f"override_input.options: {words}"
        assert await fault_of(by_rerun()) == f"override_input.options: {whose}{words}"


async def test_a_rerun_gets_the_defaults_of_options_that_the_definition_has_got_since(
    autojump_clock: MockClock,
) -> None:
    registry = ScriptedRegistry()
    definition = {"type": "p.v1", "steps": [llm("a", prompt={"user": "{{ options.tone | default('none') }}"})]}
    async with open_setting(registry=registry) as setting:
        setting.pipelines.put(decode(definition, PipelineDef))
        parent = await setting.engine.submit(JobRequest(pipeline_type="p.v1"))
        await setting.engine.wait(parent.id)
        schema = {"properties": {"tone": {"default": "warm"}}}
        setting.pipelines.put(decode({**definition, "options_schema": schema}, PipelineDef))
        for pipeline in ("latest", "same"):
            again = await setting.engine.rerun(parent.id, decode({"pipeline": pipeline}, RerunRequest))
            await setting.engine.wait(again.id)
        assert [call.messages[-1].content for call in registry.calls] == ["none", "warm", "none"]


async def test_a_rerun_has_the_defaults_of_its_own_definition_and_what_was_asked_for(
    autojump_clock: MockClock,
) -> None:
    definition = {"type": "p.v1", "steps": [llm("a")]}

    def schema(name: str, default: str) -> Json:
        properties = {name: {"default": default}, "tone": {"default": "plain"}}
        return {"additionalProperties": False, "properties": properties}

    async with open_setting() as setting:

        async def options_of(job: Job) -> dict[str, Any]:
            done = await setting.engine.wait(job.id)
            assert done.input is not None
            return done.input.options

        setting.pipelines.put(decode({**definition, "options_schema": schema("language", "en")}, PipelineDef))
        request = {"pipeline_type": "p.v1", "input": {"options": {"tone": "warm"}}}
        parent = await setting.engine.submit(decode(request, JobRequest))
        assert await options_of(parent) == {"language": "en", "tone": "warm"}
        for name, default in (("language", "de"), ("lang", "en")):
            setting.pipelines.put(decode({**definition, "options_schema": schema(name, default)}, PipelineDef))
            again = await setting.engine.rerun(parent.id, RerunRequest())
            assert await options_of(again) == {name: default, "tone": "warm"}
        same = await setting.engine.rerun(parent.id, decode({"pipeline": "same"}, RerunRequest))
        assert await options_of(same) == {"language": "en", "tone": "warm"}


async def test_a_rerun_with_other_input_and_without_reuse(autojump_clock: MockClock) -> None:
    registry = rerun_registry()
    async with open_setting(registry=registry) as setting:
        parent = await setting.run(STEPS, ["1"])
        other = JobInput(sources=[Source(content="2")])
        request = RerunRequest(from_step_id=StepId("b"), reuse_upstream=True, override_input=other)
        job = await setting.engine.wait((await setting.engine.rerun(parent.id, request)).id)
        assert texts(job, "c") == ["c:b:A:2"]
        registry.calls.clear()
        job = await setting.engine.wait((await setting.engine.rerun(parent.id, RerunRequest())).id)
        assert set(statuses(job).values()) == {"success"}
        assert len(registry.calls) == 4
        with pytest.raises(InvalidRequestError, match="ghost"):
            await setting.engine.rerun(parent.id, RerunRequest(from_step_id=StepId("ghost")))
        with pytest.raises(NotFoundError):
            await setting.engine.rerun(JobId("job_none"), RerunRequest())


async def test_only_what_failed_runs_again_and_finished_items_do_not(autojump_clock: MockClock) -> None:
    """The third item failed after its neighbours were done: they are taken over, each in its place."""
    answers = [Script(tokens=name, first=1) for name in "013"]
    answers.insert(2, Script(tokens=(), first=2, error=BAD))
    registry = ScriptedRegistry({"m": [*answers, Script(tokens="2")]})
    async with open_setting(registry=registry) as setting:
        parent = await setting.run([llm("f", "m", mode="fanout")], ["a", "b", "c", "d"])
        assert parent.status is JobStatus.FAILED
        registry.calls.clear()
        job = await setting.engine.rerun(parent.id, RerunRequest(reuse_upstream=True))
        job = await setting.engine.wait(job.id)
        assert job.status is JobStatus.SUCCEEDED
        assert texts(job) == ["0", "1", "2", "3"]
        assert registry.prompts == ["c"]
        completed = [e["data"] for e in setting.stored_events(job.id) if e["event"] == "item_completed"]
        assert [item["shard_key"] for item in completed] == ["f-0", "f-1", "f-3", "f-2"]


def completed(setting: Setting, job: Job) -> list[str]:
    return [event["data"]["id"] for event in setting.stored_events(job.id) if event["event"] == "item_completed"]


async def ids_of_checkpoints(setting: Setting, job: Job) -> list[str]:
    return [json.loads(bytes(point))["result"]["id"] for point in await setting.engine.checkpoints(job.id)]


PLAN = {"id": "plan", "kind": "map", "config": {"map": "parse", "format": "json"}}
LINES = llm("f", "m", mode="fanout", max_concurrency=1, config={"split": {"by": "lines"}})
OVER = {**LINES, "config": {"over": "plan"}, "depends_on": ["plan"]}


@pytest.mark.parametrize(
    ("before", "now", "wanted"),
    [
        (LINES, {**LINES, "config": {"split": {"by": "lines", "size": 2}}}, ['["a",\n "b",', ' "c",\n "d"]']),
        (LINES, {**LINES, "config": {}}, ['["a",\n "b",\n "c",\n "d"]']),
        (LINES, {**LINES, "config": {}, "mode": "single"}, ['["a",\n "b",\n "c",\n "d"]']),
        (OVER, LINES, ['["a",', ' "b",', ' "c",', ' "d"]']),
        (OVER, {**OVER, "mode": "per_item"}, ['["a",\n "b",\n "c",\n "d"]']),
    ],
    ids=["size", "unsplit", "single", "sources", "per_item"],
)
async def test_finished_items_of_other_shards_are_not_taken_over(
    autojump_clock: MockClock, before: Json, now: Json, wanted: list[str]
) -> None:
    echo = Script(echo=True)
    registry = ScriptedRegistry({"m": [echo, echo, echo, Script(tokens=(), error=BAD), echo]})
    source = Source(content='["a",\n "b",\n "c",\n "d"]')
    async with open_setting(registry=registry) as setting:

        def put(*steps: Json) -> None:
            setting.pipelines.put(decode({"type": "p.v1", "steps": list(steps)}, PipelineDef))

        put(PLAN, before)
        parent = await setting.engine.submit(JobRequest(pipeline_type="p.v1", input=JobInput(sources=[source])))
        assert (await setting.engine.wait(parent.id)).status is JobStatus.FAILED
        put(PLAN, now)
        for _ in range(2):  # the second is a rerun of the first
            job = await setting.engine.rerun(parent.id, RerunRequest(reuse_upstream=True))
            job = await setting.engine.wait(job.id)
            assert texts(job) == wanted
            assert job.result is not None
            assert completed(setting, job) == [item.id for item in job.result.items]
            assert await ids_of_checkpoints(setting, job) == ["plan", *completed(setting, job)]
            parent = job


async def test_items_without_a_shard_do_not_come_back_after_a_restart(autojump_clock: MockClock) -> None:
    """In a dry run an `over` has one element, whatever the parent has finished."""
    store = MemoryStore()
    echo = Script(echo=True)
    registry = ScriptedRegistry({"m": [echo, echo, Script(tokens=(), error=BAD)]})

    follower = llm("g", "m", depends_on=["f"], prompt={"user": "{{ previous.f | map(attribute='text') | list }}"})
    async with open_setting(store=store, registry=registry) as setting:
        parent = await setting.run([PLAN, OVER, follower], ['["a", "b", "c"]'])
        assert await ids_of_checkpoints(setting, parent) == ["plan", "f/f-0", "f/f-1"]
        request = decode({"parent_job_id": parent.id, "reuse_upstream": True, "dry_run": True}, JobRequest)
        job = await setting.engine.submit(request)
        job = await setting.engine.wait(job.id)
        assert (texts(job, "f"), texts(job, "g")) == (["a"], ['["a"]'])
        assert completed(setting, job) == ["f/f-0", "g"]
        assert await ids_of_checkpoints(setting, job) == ["plan", "f/f-0", "g"]
    # The crash came just before the job's end.
    stored = store._jobs[job.id]
    cut = next(index for index, event in enumerate(stored.events) if event.name == "job_status" and index > 3)
    del stored.events[cut:]
    stored.status, stored.finished_at = JobStatus.RUNNING, None
    async with open_setting(store=store, registry=registry) as setting:
        again = await setting.engine.wait(job.id)
        assert (texts(again, "f"), texts(again, "g")) == (["a"], ['["a"]'])


async def test_items_that_the_handler_left_out_are_not_made_again_but_those_that_failed_are(
    autojump_clock: MockClock,
) -> None:
    calls: list[str] = []

    async def judge(item: HandlerItem) -> str | None:
        calls.append(item.text)
        if item.text in ("c", "d"):
            await trio.sleep(1)
        if item.text == "c":
            raise ValueError("no judgement")
        return None if item.text == "b" else item.text

    handlers = Handlers()
    handlers.add("judge", judge)
    config = {"handler": "judge"}
    fanout = {"mode": "fanout", "max_concurrency": 1, "on_item_error": "skip", "timeout_s": 1.5}
    step = {"id": "j", "kind": "custom", "config": config, "export": True, **fanout}
    async with open_setting(handlers=handlers) as setting:
        parent = await setting.run([step], ["a", "b", "c", "d"])
        assert statuses(parent) == {"j": "failed"}
        calls.clear()
        await setting.engine.wait((await setting.engine.rerun(parent.id, RerunRequest(reuse_upstream=True))).id)
        assert calls == ["c", "d"]


async def test_a_corrected_definition_is_used_unless_the_same_is_asked_for(autojump_clock: MockClock) -> None:
    def registered(prompt: str) -> RegisteredPipeline:
        request = job_request([llm("a", "A"), llm("b", "echo", depends_on=["a"], prompt={"user": prompt})])
        assert request.pipeline is not None
        return RegisteredPipeline(request.pipeline, "test")

    async with open_setting(registry=rerun_registry(), pipelines=[registered("old")]) as setting:
        parent = await setting.engine.submit(JobRequest(pipeline_type="test.v1"))
        await setting.engine.wait(parent.id)
        setting.pipelines.replace_fixed([registered("new {{ previous.a[0].text }}")])
        for pipeline, text in (("latest", "new A"), ("same", "old")):
            request = RerunRequest(from_step_id=StepId("b"), reuse_upstream=True, pipeline=pipeline)  # type: ignore[arg-type]
            job = await setting.engine.rerun(parent.id, request)
            assert texts(await setting.engine.wait(job.id), "b") == [text]


async def test_time_and_limits_of_a_rerun_are_those_asked_for_or_else_of_its_definition(
    autojump_clock: MockClock,
) -> None:
    async with open_setting() as setting:

        def put(calls: int, tokens: int, timeout_s: float | None) -> None:
            limits = {"max_provider_calls": calls, "max_total_tokens": tokens}
            setting.pipelines.put(
                decode({"type": "p", "steps": [llm("a")], "limits": limits, "timeout_s": timeout_s}, PipelineDef)
            )

        async def rerun(parent: Job, **request: Any) -> tuple[float | None, Limits | None]:
            job = await setting.engine.rerun(parent.id, decode(request, RerunRequest))
            return job.timeout_s, job.limits

        put(1, 10, 5)
        plain = await setting.engine.submit(JobRequest(pipeline_type="p"))
        given = decode({"pipeline_type": "p", "timeout_s": 7, "limits": {"max_total_tokens": 11}}, JobRequest)
        asked = await setting.engine.submit(given)
        put(2, 20, 50)
        assert await rerun(plain) == (50, Limits(max_provider_calls=2, max_total_tokens=20))
        assert await rerun(asked) == (7, Limits(max_provider_calls=2, max_total_tokens=11))
        assert await rerun(plain, pipeline="same") == (5, Limits(max_provider_calls=1, max_total_tokens=10))
        put(3, 30, None)
        assert await rerun(plain) == (None, Limits(max_provider_calls=3, max_total_tokens=30))
        setting.pipelines.put(decode({"type": "p", "steps": [llm("a")]}, PipelineDef))
        assert await rerun(plain) == (None, None)


async def test_a_parent_that_still_runs_can_be_rerun(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"A": [Script(tokens="A")], "slow": [Script(first=100), Script(tokens="B")]})
    async with open_setting(registry=registry) as setting:
        parent = await setting.submit([llm("a", "A"), llm("b", "slow", depends_on=["a"])])
        await trio.sleep(1)
        job = await setting.engine.rerun(parent.id, RerunRequest(reuse_upstream=True))
        job = await setting.engine.wait(job.id)
        assert statuses(job) == {"a": "skipped", "b": "success"}
        assert (await setting.engine.get_job(parent.id)).status is JobStatus.RUNNING


async def test_what_a_rerun_that_never_began_was_to_reuse_is_reused(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"A": [Script(tokens="A")], "slow": [Script(first=100)], "bad": [Script(error=BAD)]})
    async with open_setting(registry=registry, limits=EngineLimits(max_running_jobs=1)) as setting:
        parent = await setting.run([llm("a", "A"), llm("b", "bad", depends_on=["a"])])
        await setting.submit([llm("s", "slow")])
        queued = await setting.engine.rerun(parent.id, RerunRequest(reuse_upstream=True))
        await setting.engine.cancel(queued.id)
        job = await setting.engine.rerun(queued.id, RerunRequest(reuse_upstream=True))
        job = await setting.engine.wait(job.id)
        assert statuses(job) == {"a": "skipped", "b": "failed"}
        assert [execution.reused_from for execution in job.step_executions or ()] == [queued.id, None]
