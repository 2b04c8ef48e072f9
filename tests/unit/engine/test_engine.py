"""Taking jobs in: ids, the queue, idempotency, refusals; looking at jobs. Virtual time."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
from tests.engine_setting import (
    Script,
    ScriptedProcesses,
    ScriptedRegistry,
    job_request,
    llm,
    names,
    open_setting,
    statuses,
    texts,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from pipeline_engine.engine import EngineLimits
from pipeline_engine.errors import (
    ConflictError,
    ErrorCode,
    InvalidRequestError,
    NotFoundError,
    ProviderError,
    QueueFullError,
    StoreError,
    UnavailableError,
    UnknownPipelineError,
)
from pipeline_engine.idempotency import IdempotencyKey
from pipeline_engine.models import (
    JobId,
    JobRequest,
    JobStatus,
)
from pipeline_engine.store.base import JobFilter
from pipeline_engine.store.memory import MemoryStore
from pipeline_engine.store.writer import Write
from pipeline_engine.worker_processes import WorkerError, WorkerStartError

BAD = ProviderError(ErrorCode.PROVIDER_ERROR, "bad")


async def test_the_whole_story_of_a_job(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"abc": [Script(tokens="abc")]})
    async with open_setting(registry=registry) as setting:
        accepted = await setting.submit([llm("a", "abc", export_tag="t")], ["hello"], labels={"k": "v"})
        assert accepted.status is JobStatus.QUEUED
        job = await setting.engine.wait(accepted.id)
        events = setting.stored_events(job.id)
        assert names(events) == [
            "job_queued",
            "job_started",
            "job_status",
            "step_started",
            "item_started",
            "provider_chunk",
            "provider_chunk",
            "provider_chunk",
            "item_completed",
            "step_completed",
            "job_status",
            "job_completed",
            "stream_finished",
        ]
        assert events[0]["data"]["status"] == "queued"
        assert events[0]["data"]["input"]["sources"][0]["content"] == "hello"
        assert all("input" not in event["data"] for event in events[1:])
        assert "result" not in events[-3]["data"]
        assert events[-2]["data"]["result"]["items"][0]["data"]["text"] == "abc"
        assert events[-1]["data"] == {"status": "succeeded", "resume_token": {"job_id": job.id, "seq": 13}}
        assert job.last_seq == 13
        [item] = job.result.items if job.result is not None else []
        assert (item.tag, item.kind, item.content_type, item.label) == ("t", "llm", "text", "a")
        assert item.data["prompt"] == "hello"
        assert (item.data["provider"], item.data["model"], item.data["finish_reason"]) == ("fake", "abc", "stop")
        assert job.input is not None
        assert job.input.sources[0].content == "hello"


async def test_each_job_that_ends_has_a_line_in_the_log(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    scripts = {"slow": [Script(first=1.25)], "bad": [Script(error=BAD)], "endless": [Script(first=1e6)]}
    with caplog.at_level(logging.INFO, "pipeline_engine.job_runner"):
        async with open_setting(registry=ScriptedRegistry(scripts)) as setting:
            good = await setting.run([llm("a", "slow")])
            bad = await setting.run([llm("a", "bad")], pipeline={"type": "two\nlines"})
            late = await setting.run([llm("a", "endless")], timeout_s=2)
            stopped = await setting.submit([llm("a", "endless")])
            await trio.sleep(3)
            await setting.engine.cancel(stopped.id, "a secret reason")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", f"job {good.id} of 'test.v1' succeeded after 1.2 s"),
        ("WARNING", f"job {bad.id} of 'two\\nlines' failed after 0.0 s: provider_error in step a"),
        ("WARNING", f"job {late.id} of 'test.v1' failed after 2.0 s: timeout"),
        ("INFO", f"job {stopped.id} of 'test.v1' cancelled after 3.0 s"),
    ]


async def test_ids_sort_by_time_even_within_a_millisecond(autojump_clock: MockClock) -> None:
    async with open_setting() as setting:
        ids = [(await setting.submit([llm("a")])).id for _ in range(50)]
        assert ids == sorted(set(ids))
        assert all(job_id.startswith("job_") for job_id in ids)


async def test_the_queue_goes_by_priority_then_by_arrival_and_is_bounded(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"m": [Script(echo=True, first=1)]})
    async with open_setting(registry=registry, limits=EngineLimits(max_running_jobs=1, max_queued_jobs=3)) as setting:
        await setting.submit([llm("a", "m")], ["running"])
        await trio.sleep(0.1)
        jobs = [
            await setting.submit([llm("a", "m")], [name], priority=priority)
            for name, priority in (("low", -5), ("normal", 0), ("high", 5))
        ]
        with pytest.raises(QueueFullError):
            await setting.submit([llm("a", "m")], ["too many"])
        for job in jobs:
            await setting.engine.wait(job.id)
        assert registry.prompts == ["running", "high", "normal", "low"]


async def test_jobs_that_find_a_free_place_need_none_in_the_queue(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"m": [Script(first=1)]})
    async with open_setting(registry=registry, limits=EngineLimits(max_running_jobs=8, max_queued_jobs=1)) as setting:
        async with trio.open_nursery() as nursery:
            for _ in range(9):
                nursery.start_soon(setting.submit, [llm("a", "m")])
        with pytest.raises(QueueFullError, match=r"^1 jobs? "):
            await setting.submit([llm("a", "m")])


async def test_the_same_key_and_body_give_the_same_job(autojump_clock: MockClock) -> None:
    async with open_setting() as setting:
        request = job_request([llm("a")], ["x"])
        key = IdempotencyKey("k", b"body")
        first = await setting.engine.submit(request, idempotency=key)
        again = await setting.engine.submit(request, idempotency=key)
        assert again.id == first.id
        with pytest.raises(ConflictError):
            await setting.engine.submit(request, idempotency=IdempotencyKey("k", b"other"))
        assert len((await setting.engine.list_jobs(JobFilter()))[0]) == 1


async def test_the_same_key_at_the_same_moment_gives_one_job(autojump_clock: MockClock) -> None:
    ids: list[JobId] = []
    async with open_setting() as setting:
        request = job_request([llm("a")], ["x"])

        async def submit() -> None:
            ids.append((await setting.engine.submit(request, idempotency=IdempotencyKey("k", b"body"))).id)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(submit)
        assert len(ids) == 5
        assert len(set(ids)) == 1
        assert len((await setting.engine.list_jobs(JobFilter()))[0]) == 1


async def test_a_store_that_fails_refuses_new_jobs_and_leaves_no_trace(autojump_clock: MockClock) -> None:
    class BrokenStore(MemoryStore):
        broken = False

        def write(self, operations: object) -> None:
            if self.broken:
                raise StoreError("the disk is gone")
            super().write(operations)  # type: ignore[arg-type]

    store = BrokenStore()
    registry = ScriptedRegistry({"m": [Script(tokens="ab", delay=1)]})
    async with open_setting(store=store, registry=registry) as setting:
        running = await setting.submit([llm("a", "m")])
        await trio.sleep(0.5)
        store.broken = True
        with pytest.raises(UnavailableError, match="the disk is gone"):
            await setting.submit([llm("a")])
        await trio.sleep(30)
        assert not store.head(running.id).is_final  # type: ignore[union-attr]
        store.broken = False
        assert (await setting.engine.wait(running.id)).status is JobStatus.SUCCEEDED
        assert len((await setting.engine.list_jobs(JobFilter()))[0]) == 1
        assert (await setting.run([llm("a")])).status is JobStatus.SUCCEEDED


async def test_what_cannot_run_is_refused_before_anything_is_stored(autojump_clock: MockClock) -> None:
    schema = {"type": "object", "required": ["language"]}
    async with open_setting() as setting:
        with pytest.raises(UnknownPipelineError) as unknown:
            await setting.engine.submit(JobRequest(pipeline_type="no.such"))
        assert unknown.value.details == {"known": []}
        with pytest.raises(InvalidRequestError, match="pipeline_type"):
            await setting.engine.submit(JobRequest())
        with pytest.raises(InvalidRequestError, match="language"):
            await setting.submit([llm("a")], pipeline={"options_schema": schema})
        with pytest.raises(InvalidRequestError, match="base64"):
            await setting.submit([llm("a")], [{"content_base64": "***"}])
        with pytest.raises(InvalidRequestError, match="ghost"):
            await setting.submit([llm("a", provider_profile_id="ghost")])
        assert (await setting.engine.list_jobs(JobFilter()))[0] == []


async def test_defaults_of_the_options_schema_stand_in_for_options_that_are_missing(autojump_clock: MockClock) -> None:
    declared = {
        "tone": {"type": "string", "default": "plain"},
        "words": {"type": "integer", "default": 3},
        "max_tokens": {"default": 7},
        "named": {"type": "string"},
        "any": True,
    }
    schema = {"type": "object", "properties": declared, "required": ["tone", "words"]}
    said = "{{ options.tone }}, {{ options.words }}: {{ options.named is defined }}"
    registry = ScriptedRegistry()
    async with open_setting(registry=registry) as setting:
        step = llm("a", prompt={"user": said})
        job = await setting.run([step], options={"words": 5}, pipeline={"options_schema": schema})
        [call] = registry.calls
        assert call.messages[-1].content == "plain, 5: false"
        assert call.max_tokens == 7
        assert job.input is not None
        assert job.input.options == {"words": 5, "tone": "plain", "max_tokens": 7}


async def test_a_default_that_does_not_fit_is_refused_with_the_job_that_would_get_it(autojump_clock: MockClock) -> None:
    schema = {"properties": {"words": {"type": "integer", "default": "three"}}}
    async with open_setting() as setting:
        with pytest.raises(InvalidRequestError, match=r"input\.options: \$\.words: 'three' is not of type 'integer'"):
            await setting.submit([llm("a")], pipeline={"options_schema": schema})


@pytest.mark.parametrize(("given", "sent"), [(12, 12), (12.0, 12), (0, 0), (None, None), ("", None)])
async def test_the_limit_of_tokens_is_sent_as_a_whole_number(
    autojump_clock: MockClock, given: object, sent: int | None
) -> None:
    registry = ScriptedRegistry()
    async with open_setting(registry=registry) as setting:
        await setting.run([llm("a")], options={"max_tokens": given})
        [call] = registry.calls
        assert call.max_tokens == sent
        assert type(call.max_tokens) is type(sent)


@pytest.mark.parametrize("given", ["12", 12.5, True, [12]])
async def test_a_limit_of_tokens_that_is_no_whole_number_is_refused(autojump_clock: MockClock, given: object) -> None:
    async with open_setting() as setting:
        with pytest.raises(InvalidRequestError, match=r"input\.options\.max_tokens: expected a whole number"):
            await setting.submit([llm("a")], options={"max_tokens": given})


async def test_limits_that_change_hold_at_once(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"slow": [Script(first=10)]})
    async with open_setting(registry=registry, limits=EngineLimits(max_running_jobs=1)) as setting:
        services = setting.engine._services
        jobs = [await setting.submit([llm("a", "slow")]) for _ in range(3)]
        await trio.sleep(1)
        assert registry.under_way == 1
        setting.engine.use_settings(limits=EngineLimits(max_running_jobs=2, max_queued_jobs=1), services=services)
        await trio.sleep(1)
        assert registry.under_way == 2
        with pytest.raises(QueueFullError):
            await setting.submit([llm("a")])
        for job in jobs:
            assert (await setting.engine.wait(job.id)).status is JobStatus.SUCCEEDED


@pytest.mark.parametrize(
    ("failure", "error", "words"),
    [
        (
            WorkerError("the check takes for ever"),
            InvalidRequestError,
            "^input.options: \\$: the check takes for ever$",
        ),
        (WorkerStartError("cannot start a process for the check"), UnavailableError, "^cannot start"),
    ],
)
async def test_options_that_a_process_could_not_check_are_refused(
    autojump_clock: MockClock, failure: WorkerError, error: type[Exception], words: str
) -> None:
    schema = {"properties": {"language": {"pattern": "^(a+)+$"}}}
    async with open_setting(processes=ScriptedProcesses(failure)) as setting:
        with pytest.raises(error, match=words):
            await setting.submit([llm("a")], pipeline={"options_schema": schema})
        assert (await setting.engine.list_jobs(JobFilter()))[0] == []


async def test_bytes_are_their_text_or_a_note_of_their_size(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"m": [Script(echo=True)]})
    async with open_setting(registry=registry) as setting:
        sources = [{"content_base64": "Y2Fmw6k="}, {"content_base64": "/////w=="}]
        assert texts(await setting.run([llm("a", "m")], sources)) == ["café\n[4 bytes that are not text]"]


async def test_finished_jobs_can_be_deleted_and_others_not(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"slow": [Script(first=100)]})
    async with open_setting(registry=registry) as setting:
        done = await setting.run([llm("a")])
        await setting.engine.delete(done.id)
        with pytest.raises(NotFoundError):
            await setting.engine.get_job(done.id)
        running = await setting.submit([llm("a", "slow")])
        with pytest.raises(ConflictError):
            await setting.engine.delete(running.id)
        with pytest.raises(NotFoundError):
            await setting.engine.delete(JobId("job_none"))


async def test_a_deletion_whose_client_leaves_lets_go_of_the_artifacts_too(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_setting() as setting:
        job = await setting.run([llm("a")])
        monkeypatch.setattr(setting.store, "artifacts_of", lambda _: ["5" * 64])
        post, next_end = setting.writer.post, setting.engine.next_end
        with trio.CancelScope() as scope:

            def post_and_leave(*arguments: Any, **settings: Any) -> Write:
                write = post(*arguments, **settings)
                scope.cancel()
                return write

            monkeypatch.setattr(setting.writer, "post", post_and_leave)
            await setting.engine.delete(job.id)
        assert scope.cancelled_caught
        await wait_all_tasks_blocked()
        assert setting.store.head(job.id) is None
        assert setting.engine._services.artifacts.doubtful == {"5" * 64}
        assert next_end.is_set()


async def test_a_running_job_is_shown_as_far_as_it_is_stored(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"slow": [Script(first=100)]})
    async with open_setting(registry=registry) as setting:
        job = await setting.submit([llm("a"), llm("b", "slow", depends_on=["a"]), llm("c", depends_on=["b"])], ["x"])
        await trio.sleep(1)
        job = await setting.engine.get_job(job.id)
        assert job.status is JobStatus.RUNNING
        assert statuses(job) == {"a": "success", "b": "running", "c": "pending"}
        assert job.input is not None
        assert job.result is None
        assert job.last_seq > 5


async def test_a_running_step_is_shown_with_its_attempts_and_how_many_items_there_will_be(
    autojump_clock: MockClock,
) -> None:
    registry = ScriptedRegistry({"bad": [Script(error=ProviderError(ErrorCode.PROVIDER_ERROR, "x", retryable=True))]})
    step = llm("a", "bad", mode="fanout", retry={"max_attempts": 9, "backoff_s": 100, "max_backoff_s": 100})
    async with open_setting(registry=registry) as setting:
        job = await setting.submit([step], ["1", "2", "3"])
        await trio.sleep(250)
        [execution] = (await setting.engine.get_job(job.id)).step_executions or []
        assert execution.attempts > 2
        assert (execution.items_done, execution.items_total) == (0, 3)
