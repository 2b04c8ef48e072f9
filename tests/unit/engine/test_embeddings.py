"""What later steps see of embeddings: templates, expressions, JMESPath, reduce and handlers. Virtual time."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from tests.engine_setting import Json, Script, ScriptedRegistry, Setting, example_steps, llm, open_setting, texts
from trio.testing import MockClock

from pipeline_engine.models import Job, JobStatus, RerunRequest, StepId
from pipeline_engine.steps.handlers import HandlerItem, Handlers
from pipeline_engine.store.memory import MemoryStore

SOURCES = ["a", "bbb", "cc"]  # their vectors: [1.0, 0.5], [3.0, 0.5], [2.0, 0.5]


def embed(step_id: str = "e", **step: Any) -> Json:
    return llm(step_id, **{"mode": "fanout", "output_type": "embedding", "export": False, **step})


def later(step_id: str, config: Json, kind: str = "map", **step: Any) -> Json:
    """An exported step behind the embeddings, on each of them unless it is a reduce."""
    mode = "per_item" if kind == "map" else "single"
    base: Json = {"id": step_id, "kind": kind, "mode": mode, "depends_on": ["e"], "export": True, "config": config}
    return {**base, **step}


def collect(step_id: str = "all", **step: Any) -> Json:
    return later(step_id, {"reduce": "collect"}, kind="reduce", **step)


def data_of(job: Job, step_id: str) -> list[Json]:
    assert job.result is not None
    assert job.status is JobStatus.SUCCEEDED, job.error
    return [item.data for item in job.result.items if item.step_id == step_id]


async def run(steps: list[Json], handlers: Handlers | None = None, **request: Any) -> Job:
    async with open_setting(handlers=handlers) as setting:
        return await setting.run(steps, SOURCES, **request)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"map": "template", "template": "{{ item.embedding[0] }}"}, ["1.0", "3.0", "2.0"]),
        ({"map": "template", "template": "{{ previous.e[index].embedding | length }}"}, ["2", "2", "2"]),
        ({"map": "filter", "expression": "item.embedding[0] > 1"}, ["bbb", "cc"]),
        ({"map": "select", "expression": "embedding[0]"}, ["1.0", "3.0", "2.0"]),
        ({"map": "select", "expression": "text"}, SOURCES),
    ],
)
async def test_templates_and_expressions_see_the_vector(
    autojump_clock: MockClock, config: Json, expected: list[str]
) -> None:
    job = await run([embed(), later("see", config)])
    assert [data["text"] for data in data_of(job, "see")] == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"reduce": "collect"}, [{"text": "a", "embedding": [1.0, 0.5]}, {"text": "bbb", "embedding": [3.0, 0.5]},
                                 {"text": "cc", "embedding": [2.0, 0.5]}]),
        ({"reduce": "top", "by": "embedding[0]", "n": 1}, [{"text": "bbb", "embedding": [3.0, 0.5]}]),
        ({"reduce": "count_by", "by": "length(embedding)"}, {"2": 3}),
    ],
)  # fmt: skip
async def test_a_reduce_takes_the_texts_with_their_vectors(
    autojump_clock: MockClock, config: Json, expected: object
) -> None:
    job = await run([embed(), later("fold", config, kind="reduce")])
    assert data_of(job, "fold")[0]["json"] == expected


async def test_what_stays_as_it_is_stays_an_embedding(autojump_clock: MockClock) -> None:
    keep = later("keep", {"map": "filter", "expression": "item.text != 'bbb'"})
    job = await run([embed(), keep, collect(depends_on=["keep"])])
    assert data_of(job, "keep")[0] == {"text": "a", "embedding": [1.0, 0.5], "dimensions": 2}
    assert [one["text"] for one in data_of(job, "all")[0]["json"]] == ["a", "cc"]


async def test_handlers_get_the_vector_of_one_and_the_list_of_all(autojump_clock: MockClock) -> None:
    async def norm(item: HandlerItem) -> object:
        await trio.lowlevel.checkpoint()
        assert item.embedding is not None
        total = sum(item.embedding)
        item.embedding.clear()  # which is its own
        return total

    async def nearest(item: HandlerItem) -> str:
        await trio.lowlevel.checkpoint()
        question, *passages = item.json
        best = min(passages, key=lambda one: abs(one["embedding"][0] - question["embedding"][0]))
        return str(best["text"])

    handlers = Handlers()
    handlers.add("norm", norm)
    handlers.add("nearest", nearest)
    steps = [
        embed(),
        embed("q", mode="single", prompt={"user": "{{ options.question }}"}),
        collect(depends_on=["q", "e"]),
        later("norm", {"handler": "norm"}, kind="custom", mode="per_item"),
        later("again", {"handler": "norm"}, kind="custom", mode="per_item", depends_on=["norm", "e"]),
        later("one", {"handler": "norm"}, kind="custom", depends_on=["q"]),
        later("nearest", {"handler": "nearest"}, kind="custom", depends_on=["all"]),
    ]
    job = await run(steps, handlers, options={"question": "????"})
    assert texts(job, "norm") == texts(job, "again") == ["1.5", "3.5", "2.5"]
    assert texts(job, "one") == ["4.5"]
    assert texts(job, "nearest") == ["bbb"]


async def test_the_example_answers_from_what_is_nearest(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry()
    async with open_setting(registry=registry) as setting:
        job = await setting.run(example_steps("nearest.yaml"), ["a\n\nbbb\n\ncc\n\ndddd"], options={"question": "?"})
        [nearest] = data_of(job, "nearest")
        assert [one["text"] for one in nearest["json"]] == ["dddd", "bbb", "cc"]
        assert [one["score"] for one in nearest["json"]] == [4.25, 3.25, 2.25]
        assert registry.prompts[-1] == "dddd\n\nbbb\n\ncc\n\nThe question: ?\n"


async def test_prompts_and_texts_are_without_the_vector_unless_they_ask_for_it(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry()
    steps = [
        embed(),
        llm("say", mode="per_item", depends_on=["e"]),
        later("join", {"reduce": "concat", "separator": ","}, kind="reduce"),
        later("text", {"map": "template", "template": "{{ item.text }}"}),
    ]
    async with open_setting(registry=registry) as setting:
        job = await setting.run(steps, SOURCES)
        assert sorted(registry.prompts) == sorted(SOURCES)
        assert data_of(job, "join") == [{"text": "a,bbb,cc"}]
        assert data_of(job, "text") == [{"text": text} for text in SOURCES]


async def test_a_dry_run_has_no_vectors_and_default_stands_in(autojump_clock: MockClock) -> None:
    template = later("see", {"map": "template", "template": "{{ item.embedding | default([]) | length }}"})
    asked = llm(
        "ask", mode="per_item", depends_on=["e"], prompt={"user": "{{ item.embedding | default([]) | length }}"}
    )
    job = await run([embed(), template, asked], dry_run=True)
    assert texts(job, "ask") == ["0", "0", "0"]


async def test_vectors_are_there_after_a_restart_and_in_a_rerun(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    registry = ScriptedRegistry({"slow": [Script(first=10)]})
    steps = [embed(), llm("wait", "slow", depends_on=["e"]), collect(depends_on=["wait", "e"])]
    expected = [
        "ok",
        {"text": "a", "embedding": [1.0, 0.5]},
        {"text": "bbb", "embedding": [3.0, 0.5]},
        {"text": "cc", "embedding": [2.0, 0.5]},
    ]
    submitted: Job | None = None
    with trio.CancelScope() as scope:
        async with open_setting(store=store, registry=registry) as setting:
            submitted = await setting.submit(steps, SOURCES)
            await trio.sleep(5)
            scope.cancel()
            await trio.sleep_forever()
    assert submitted is not None
    async with open_setting(store=store, registry=registry) as setting:
        job = await setting.engine.wait(submitted.id)
        assert job.restarts == 1
        assert data_of(job, "all")[0]["json"] == expected
        assert embedding_calls(registry) == 1
        again = await rerun(setting, job)
        assert data_of(again, "all")[0]["json"] == expected
        assert embedding_calls(registry) == 1


def embedding_calls(registry: ScriptedRegistry) -> int:
    return sum(bool(call.inputs) for call in registry.calls)


async def rerun(setting: Setting, parent: Job) -> Job:
    request = RerunRequest(from_step_id=StepId("all"), reuse_upstream=True)
    job = await setting.engine.rerun(parent.id, request)
    return await setting.engine.wait(job.id)
