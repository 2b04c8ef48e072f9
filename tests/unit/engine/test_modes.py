"""Fanout, per_item, split and over; concurrency, order, item errors; dry runs; structured output. Virtual time."""

from __future__ import annotations

import pytest
import trio
from tests.engine_setting import (
    Json,
    Script,
    ScriptedProcesses,
    ScriptedRegistry,
    example_steps,
    llm,
    names,
    open_setting,
    statuses,
    texts,
)
from trio.testing import MockClock

from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.models import JobStatus, Usage
from pipeline_engine.steps.handlers import HandlerItem, Handlers
from pipeline_engine.worker_processes import WorkerError, WorkerStartError

ECHO = Script(echo=True, first=1)


def echo() -> ScriptedRegistry:
    return ScriptedRegistry({"echo": [ECHO]})


async def test_fanout_keeps_the_order_and_the_concurrency(autojump_clock: MockClock) -> None:
    registry = echo()
    async with open_setting(registry=registry) as setting:
        began = trio.current_time()
        step = llm("f", "echo", mode="fanout", max_concurrency=5, name="Fan")
        job = await setting.run([step], [f"s{n}" for n in range(20)])
        assert trio.current_time() - began == pytest.approx(4)
        assert registry.most_under_way == 5
        assert texts(job) == [f"s{n}" for n in range(20)]
        assert job.result is not None
        assert [item.shard_key for item in job.result.items] == [f"f-{n}" for n in range(20)]
        assert [item.label for item in job.result.items] == [f"Fan#{n + 1}" for n in range(20)]
        assert len({item.id for item in job.result.items}) == 20
        assert job.usage == Usage(prompt_tokens=20, completion_tokens=40)
        progress = [e["data"] for e in setting.stored_events(job.id) if e["event"] == "step_progress"]
        assert progress[-1] == {"step_id": "f", "done": 20, "total": 20}


async def test_per_item_keeps_the_shard_keys_and_without_dependencies_acts_as_fanout(
    autojump_clock: MockClock,
) -> None:
    steps = [
        llm("f", "echo", mode="per_item"),
        llm("p", "echo", mode="per_item", depends_on=["f"], prompt={"user": "<{{ item.text }}|{{ index }}>"}),
    ]
    async with open_setting(registry=echo()) as setting:
        job = await setting.run(steps, ["a", "b"])
        assert texts(job, "p") == ["<a|0>", "<b|1>"]
        assert job.result is not None
        assert [item.shard_key for item in job.result.items] == ["f-0", "f-1", "f-0", "f-1"]


async def test_a_reduce_per_item_folds_one_item_at_a_time(autojump_clock: MockClock) -> None:
    concat = {"kind": "reduce", "mode": "per_item", "config": {"reduce": "concat", "separator": "|"}, "export": True}
    steps: list[Json] = [
        {"id": "a", "kind": "map", "mode": "fanout", "config": {"map": "identity"}},
        {"id": "b", "kind": "map", "config": {"map": "template", "template": "B"}},
        {"id": "of_one", "depends_on": ["a", "b"], **concat},
        {"id": "of_each", "depends_on": ["b", "a"], **concat},
    ]
    async with open_setting() as setting:
        job = await setting.run(steps, ["1", "2"])
        assert texts(job, "of_one") == ["B"]
        assert texts(job, "of_each") == ["1", "2"]


async def test_nothing_to_fan_out_over_makes_no_items_and_succeeds(autojump_clock: MockClock) -> None:
    steps = [
        llm("f", mode="fanout"),
        llm("g", mode="per_item", depends_on=["f"]),
        llm("join", "echo", depends_on=["g"], prompt={"user": "n={{ previous.g | length }}"}),
    ]
    async with open_setting(registry=echo()) as setting:
        job = await setting.run(steps)
        assert job.status is JobStatus.SUCCEEDED
        assert statuses(job) == {"f": "success", "g": "success", "join": "success"}
        assert texts(job) == ["n=0"]


async def test_fanout_over_the_elements_of_a_json_answer(autojump_clock: MockClock) -> None:
    steps = [
        {"id": "plan", "kind": "map", "config": {"map": "parse", "format": "json"}},
        llm(
            "do",
            "echo",
            mode="fanout",
            depends_on=["plan"],
            config={"over": "plan"},
            prompt={"user": "{{ item.json }}"},
        ),
    ]
    async with open_setting(registry=echo()) as setting:
        assert texts(await setting.run(steps, ['["x", {"k": 1}, 2]'])) == ["x", '{"k":1}', "2"]
        failed = await setting.run(steps, ['{"a": 1}'])
        assert failed.error is not None
        assert (failed.error.code, failed.error.details["step_id"]) == ("output_invalid", "do")
        assert "over" in failed.error.message
        assert "an object" in failed.error.message


async def test_skipped_items_keep_the_places_of_the_others(autojump_clock: MockClock) -> None:
    steps = [
        {
            "id": "t",
            "kind": "map",
            "mode": "fanout",
            "export": True,
            "on_item_error": "skip",
            "config": {"map": "parse", "format": "json"},
        }
    ]
    async with open_setting() as setting:
        job = await setting.run(steps, ["1", "no json", "3"])
        assert job.status is JobStatus.SUCCEEDED
        assert job.result is not None
        assert [(item.label, item.shard_key) for item in job.result.items] == [("t#1", "t-0"), ("t#3", "t-2")]
        [execution] = job.step_executions or []
        assert [error.details["shard_key"] for error in execution.errors] == ["t-1"]
        assert (execution.items_done, execution.items_total) == (3, 3)


async def test_a_batch_of_embeddings_that_is_skipped_is_named_item_by_item(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"m": [Script(error=ProviderError(ErrorCode.PROVIDER_ERROR, "bad"))]})
    step = llm("e", "m", mode="fanout", output_type="embedding", on_item_error="skip", config={"batch_size": 2})
    async with open_setting(registry=registry) as setting:
        job = await setting.run([step], ["a", "b", "c"])
        assert job.status is JobStatus.SUCCEEDED
        [execution] = job.step_executions or []
        assert [error.details["shard_key"] for error in execution.errors] == ["e-0", "e-1", "e-2"]
        assert (execution.items_done, execution.items_total) == (3, 3)
        progress = [event["data"] for event in setting.stored_events(job.id) if event["event"] == "step_progress"]
        assert progress[-1] == {"step_id": "e", "done": 3, "total": 3}


async def test_a_failing_item_stops_its_siblings_and_keeps_what_was_done(autojump_clock: MockClock) -> None:
    bad = Script(tokens=(), first=2, error=ProviderError(ErrorCode.PROVIDER_ERROR, "bad"))
    registry = ScriptedRegistry({"m": [Script(echo=True, first=1), bad, Script(first=100)]})
    async with open_setting(registry=registry) as setting:
        began = trio.current_time()
        job = await setting.run([llm("f", "m", mode="fanout", max_concurrency=3)], ["a", "b", "c", "d"])
        assert trio.current_time() - began == pytest.approx(2)
        assert job.error is not None
        assert job.error.details["shard_key"] == "f-1"
        assert registry.under_way == 0
        points = await setting.engine.checkpoints(job.id)
        assert len(points) == 1
        assert b'"f-0"' in bytes(points[0])


async def test_too_many_items_fail_the_step_before_any_runs(autojump_clock: MockClock) -> None:
    step = {"id": "w", "kind": "map", "mode": "fanout", "config": {"map": "identity", "split": {"by": "lines"}}}
    async with open_setting(max_items=10) as setting:
        job = await setting.run([step], ["x\n" * 11])
        assert job.error is not None
        assert job.error.message.endswith("(limits.max_items); a larger split.size makes fewer")
        assert (await setting.run([step], ["x\n" * 10])).status is JobStatus.SUCCEEDED


async def test_a_single_map_reads_what_it_depends_on_and_the_sources_otherwise(autojump_clock: MockClock) -> None:
    steps: list[Json] = [
        {"id": "a", "kind": "map", "mode": "fanout", "config": {"map": "identity"}},
        {"id": "b", "kind": "map", "depends_on": ["a"], "config": {"map": "identity"}, "export": True},
        {"id": "c", "kind": "map", "config": {"map": "identity"}, "export": True},
    ]
    async with open_setting() as setting:
        assert texts(await setting.run(steps, ["x", "y"])) == ["x\ny", "x\ny"]
        assert texts(await setting.run(steps[:2], ["x", "y"])) == ["x\ny"]


async def test_the_text_of_a_transform_is_parsed_as_its_format_asks(autojump_clock: MockClock) -> None:
    def step(output_format: str) -> Json:
        config = {"map": "template", "template": "{{ item.text }}"}
        return {"id": "m", "kind": "map", "config": config, "output_format": output_format, "export": True}

    async with open_setting() as setting:
        for output_format, text, value in (
            ("json_strict", '{"a": 1}', {"a": 1}),
            ("json_loose", "{'a': 1,}", {"a": 1}),
            ("json_loose", "no json", None),
        ):
            job = await setting.run([step(output_format)], [text])
            assert job.result is not None
            assert job.result.items[0].data["json"] == value
        failed = await setting.run([step("json_strict")], ["no json"])
        assert failed.error is not None
        assert failed.error.code == "output_invalid"


async def test_filtered_items_are_left_out(autojump_clock: MockClock) -> None:
    keep = {"map": "filter", "expression": "item.text == 'keep'", "split": {"by": "lines"}}
    steps = [
        {"id": "f", "kind": "map", "mode": "fanout", "config": keep, "export": True},
        {"id": "n", "kind": "reduce", "depends_on": ["f"], "config": {"reduce": "collect"}, "export": True},
    ]
    async with open_setting() as setting:
        job = await setting.run(steps, ["keep\ndrop\nkeep\n"])
        assert texts(job, "f") == ["keep", "keep"]
        assert texts(job, "n") == ['["keep","keep"]']


async def test_an_item_finds_what_it_was_made_of_though_items_between_were_left_out(autojump_clock: MockClock) -> None:
    [prompt] = [step["prompt"] for step in example_steps("translate.yaml") if step["id"] == "check"]
    steps: list[Json] = [
        {"id": "paragraphs", "kind": "map", "mode": "fanout", "config": {"map": "identity"}},
        {
            "id": "translate",
            "kind": "map",
            "mode": "per_item",
            "depends_on": ["paragraphs"],
            "config": {"map": "filter", "expression": "item.text != 'one'"},
        },
        llm("check", "echo", mode="per_item", depends_on=["paragraphs", "translate"], prompt={"user": prompt["user"]}),
    ]
    async with open_setting(registry=echo()) as setting:
        job = await setting.run(steps, ["one", "two", "three"])
        assert [text.count("two") for text in texts(job)] == [2, 0]
        assert [text.count("three") for text in texts(job)] == [0, 2]


async def test_a_dry_run_renders_and_walks_but_calls_nobody(autojump_clock: MockClock) -> None:
    def explode(item: HandlerItem) -> str:
        raise AssertionError("a dry run calls no handler")

    handlers = Handlers()
    handlers.add("explode", explode)
    registry = echo()
    steps = [
        llm("a", prompt={"user": "One: {{ sources[0].content }}"}, output_type="json", output_format="json_strict"),
        llm("b", mode="fanout", depends_on=["a"], config={"over": "a"}, prompt={"user": "Two: {{ item.text }}"}),
        {"id": "c", "kind": "custom", "depends_on": ["b"], "config": {"handler": "explode"}, "export": True},
        {"id": "d", "kind": "map", "depends_on": ["b"], "config": {"map": "parse", "format": "json"}, "export": True},
    ]
    async with open_setting(registry=registry, handlers=handlers) as setting:
        job = await setting.run(steps, ["hi"], dry_run=True)
        assert job.status is JobStatus.SUCCEEDED
        assert registry.calls == []
        assert texts(job, "a") == ["One: hi"]
        assert texts(job, "b") == ["Two: One: hi"]
        assert texts(job, "c") == texts(job, "d") == ["Two: One: hi"]
        assert job.result is not None
        assert all(item.data["json"] is None for item in job.result.items)
        assert job.result.items[0].data["prompt"] == "One: hi"


async def test_a_repair_asks_again_with_the_fault_and_counts_as_a_new_attempt(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry(
        {"m": [Script(tokens=["not json"]), Script(tokens=['{"n": "x"}']), Script(tokens=["[1]"])]}
    )
    schema = {"type": "array"}
    step = llm("j", "m", output_type="json", output_format="json_strict", config={"json_schema": schema})
    async with open_setting(registry=registry) as setting:
        job = await setting.run([step], ["go"])
        assert job.result is not None
        assert job.result.items[0].data["json"] == [1]
        assert [len(call.messages) for call in registry.calls] == [1, 3, 5]
        assert registry.calls[1].messages[1].content == "not json"
        [execution] = job.step_executions or []
        assert execution.attempts == 3
        chunks = [e["data"] for e in setting.stored_events(job.id) if e["event"] == "provider_chunk"]
        assert [(chunk["attempt"], chunk["index"]) for chunk in chunks] == [(1, 0), (2, 0), (3, 0)]
        assert "step_retrying" not in names(setting.stored_events(job.id))


async def test_an_answer_that_never_fits_is_invalid_and_its_text_is_told(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"m": [Script(tokens=['{"n":"three"}'])]})
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    config = {"json_schema": schema, "repair_attempts": 1}
    step = llm("j", "m", output_type="json", output_format="json_strict", config=config)
    async with open_setting(registry=registry) as setting:
        job = await setting.run([step], ["go"])
        assert job.error is not None
        assert job.error.code == "output_invalid"
        assert "three" in job.error.details["raw"]
        assert len(registry.calls) == 2


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (WorkerError("the check takes for ever"), "output_invalid", "$: the check takes for ever"),
        (WorkerStartError("cannot start a process for the check"), "internal", "cannot start a process for the check"),
    ],
)
async def test_an_answer_that_a_process_could_not_check_fails_its_step(
    autojump_clock: MockClock, failure: WorkerError, code: str, words: str
) -> None:
    registry = ScriptedRegistry({"m": [Script(tokens=['"aaaa"'])]})
    config = {"json_schema": {"pattern": "^(a+)+$"}, "repair_attempts": 1}
    step = llm("j", "m", output_type="json", output_format="json_strict", config=config)
    async with open_setting(registry=registry, processes=ScriptedProcesses(failure)) as setting:
        job = await setting.run([step], ["go"])
        assert job.error is not None
        assert job.error.code == code
        assert words in job.error.message


async def test_an_answer_that_the_token_limit_cut_is_never_mended(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"m": [Script(tokens=["[1, 2]"], finish_reason="length")]})
    step = llm("j", "m", output_type="json", output_format="json_strict")
    async with open_setting(registry=registry) as setting:
        job = await setting.run([step], ["go"])
        assert job.error is not None
        assert job.error.code == "output_truncated"
        assert len(registry.calls) == 1


@pytest.mark.parametrize(
    ("answer", "value"),
    [('{"a": 1', None), ("Let me think: [", None), ("12", None), ('{"a": 1,} I have', {"a": 1}), ('"12"', "12")],
)
async def test_of_a_cut_answer_only_a_value_that_is_whole_counts(
    autojump_clock: MockClock, answer: str, value: object
) -> None:
    registry = ScriptedRegistry({"m": [Script(tokens=[answer], finish_reason="length")]})
    async with open_setting(registry=registry) as setting:
        job = await setting.run([llm("j", "m", output_type="json", output_format="json_loose")], ["go"])
        if value is not None:
            assert job.result is not None
            assert job.result.items[0].data["json"] == value
        else:
            assert job.error is not None
            assert job.error.code == "output_truncated"
            assert job.error.details["raw"] == answer


@pytest.mark.parametrize(
    ("answer", "value"),
    [('[{"a": 1,}]', [{"a": 1}]), ("[]", []), ('{"a":1}', None), ("[1]", None), ("no table", None)],
)
async def test_a_table_is_a_list_of_objects_whoever_makes_it(
    autojump_clock: MockClock, answer: str, value: object
) -> None:
    handlers = Handlers()
    handlers.add("tell", lambda item: item.text)
    loose = {"output_type": "table", "output_format": "json_loose", "export": True}
    steps: list[Json] = [
        llm("model", "m", **loose),
        {"id": "map", "kind": "map", "config": {"map": "identity"}, **loose},
        {"id": "hand", "kind": "custom", "config": {"handler": "tell"}, **loose},
    ]
    async with open_setting(registry=ScriptedRegistry({"m": [Script(tokens=[answer])]}), handlers=handlers) as setting:
        for step in steps:
            job = await setting.run([step], [answer])
            if value is not None:
                assert job.result is not None
                assert job.result.items[0].data["json"] == value
                continue
            assert job.error is not None
            assert job.error.code == "output_invalid"
            assert "table" in job.error.message
            assert job.error.details["raw"] == answer


async def test_a_value_that_a_transform_makes_is_no_table_by_being_json(autojump_clock: MockClock) -> None:
    step = {"id": "m", "kind": "map", "config": {"map": "parse", "format": "json"}, "output_type": "table"}
    async with open_setting() as setting:
        assert (await setting.run([step], ['[{"a":1}]'])).status is JobStatus.SUCCEEDED
        assert (await setting.run([step], ['{"a":1}'], dry_run=True)).status is JobStatus.SUCCEEDED
        job = await setting.run([step], ['{"a":1}'])
        assert job.error is not None
        assert job.error.code == "output_invalid"


async def test_a_budget_ends_the_job(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"m": [Script(usage=Usage(prompt_tokens=5, completion_tokens=5))]})
    step = llm("f", "m", mode="fanout", max_concurrency=1, on_item_error="skip")
    async with open_setting(registry=registry) as setting:
        for limits, calls in (({"max_provider_calls": 3}, 3), ({"max_total_tokens": 20}, 2)):
            registry.calls.clear()
            job = await setting.run([step], ["x"] * 9, limits=limits)
            assert job.error is not None
            assert job.error.code == "budget_exceeded"
            assert next(iter(limits)) in job.error.message
            assert len(registry.calls) == calls


async def test_per_item_over_a_single_step_knows_its_index(autojump_clock: MockClock) -> None:
    prompt = {"user": "{{ index }}: {{ item.text }}"}
    steps = [llm("a"), llm("b", "echo", mode="per_item", depends_on=["a"], prompt=prompt)]
    async with open_setting(registry=ScriptedRegistry({"echo": [Script(echo=True)]})) as setting:
        assert texts(await setting.run(steps, ["x"]), "b") == ["0: ok"]
