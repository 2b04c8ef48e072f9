"""The engine on a real database: long chains, wide fanouts, large sources, and memory that is bounded by what is live."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from tests.drawing_setting import DrawingRegistry
from tests.engine_setting import Json, Script, ScriptedRegistry, Setting, llm, names, open_setting, texts

from pipeline_engine.models import JobStatus, ProviderExtra, ProviderKind, ProviderProfile, RerunRequest, StepId
from pipeline_engine.providers.base import Operation
from pipeline_engine.providers.local_tool import LocalToolProvider
from pipeline_engine.providers.registry import open_registry
from pipeline_engine.steps.handlers import Handlers
from pipeline_engine.store.base import DeleteJobs
from pipeline_engine.store.sqlite import open_sqlite_store


@asynccontextmanager
async def on_disk(tmp_path: Path) -> AsyncIterator[Setting]:
    store = open_sqlite_store(tmp_path / "engine.db")
    async with open_setting(store=store, artifacts=tmp_path / "artifacts") as setting:
        yield setting
    store.close()


def tool(profile_id: str, script: str) -> ProviderProfile:
    """A profile that runs a script of the shell."""
    extra = ProviderExtra(command=["sh", "-c", script])
    return ProviderProfile(id=profile_id, kind=ProviderKind.LOCAL_TOOL, extra=extra)


def identity(step_id: str, **step: object) -> Json:
    return {"id": step_id, "kind": "map", "config": {"map": "identity"}, **step}


async def test_a_chain_of_a_hundred_steps_stores_every_event(tmp_path: Path) -> None:
    chain = [identity(f"m{n}", depends_on=[f"m{n - 1}"] if n else [], export=n == 99) for n in range(100)]
    async with on_disk(tmp_path) as setting:
        job = await setting.run(chain, ["x"])
        assert texts(job) == ["x"]
        events = setting.stored_events(job.id)
        assert [event["seq"] for event in events] == list(range(1, job.last_seq + 1))
        assert names(events).count("step_completed") == 100
        assert len(await setting.engine.checkpoints(job.id)) == 100


async def test_a_fanout_of_a_thousand_items_stores_every_event(tmp_path: Path) -> None:
    async with on_disk(tmp_path) as setting:
        job = await setting.run([identity("w", mode="fanout", export=True)], [str(n) for n in range(1000)])
        assert texts(job) == [str(n) for n in range(1000)]
        events = setting.stored_events(job.id)
        assert [event["seq"] for event in events] == list(range(1, job.last_seq + 1))
        assert names(events).count("item_completed") == 1000


async def test_ten_megabytes_and_odd_characters_pass_unharmed(tmp_path: Path) -> None:
    odd = "a\u2028b\u2029c\u0085d\x0b\x0ce\x00f {{ sources }} {% raw %} \U0001f600 日本語\r\nend"
    large = "é" * 5_000_000
    async with on_disk(tmp_path) as setting:
        for text in (odd, large):
            job = await setting.run([identity("m", export=True)], [text])
            assert texts(job) == [text]
            assert job.input is not None
            assert job.input.sources[0].content == text
            followed = [event async for event in setting.follow(job.id)]
            assert followed == setting.stored_events(job.id)


def resident_mib() -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) / 1024


async def test_finished_jobs_cost_no_memory(tmp_path: Path) -> None:
    """A hundred megabytes go through the engine; what stays is what it needs for one of them."""
    async with on_disk(tmp_path) as setting:
        before = 0.0
        for turn in range(50):
            job = await setting.run([identity("m", export=True)], ["x" * 2_000_000])
            assert job.status is JobStatus.SUCCEEDED
            await setting.writer.execute(DeleteJobs([job.id]))
            del job
            if turn == 9:
                gc.collect()
                before = resident_mib()
        gc.collect()
        assert resident_mib() - before < 60
        assert setting.engine._live == {}
        assert setting.engine._events._live == {}
        assert setting.engine._kept_bytes == 0


async def test_jobs_that_wait_keep_their_large_inputs_on_disk(tmp_path: Path) -> None:
    async with on_disk(tmp_path) as setting:
        jobs = [await setting.submit([identity("m", export=True)], [f"{n}" * 1_500_000]) for n in range(8)]
        for n, job in enumerate(jobs):
            done = await setting.engine.wait(job.id)
            assert texts(done) == [f"{n}" * 1_500_000]
        assert msgspec.json.decode((await setting.engine.checkpoints(jobs[0].id))[0])["step_id"] == "m"


PICTURE = b"\x89PNG\r\n\x1a\n"


async def test_the_pictures_of_one_step_are_seen_by_the_next(tmp_path: Path) -> None:
    registry = DrawingRegistry(draw=lambda prompt: PICTURE + prompt.encode())
    paint = {"id": "paint", "kind": "image", "provider_profile_id": "painter", "mode": "fanout", "output_type": "image"}
    steps = [
        {**paint, "export": True},
        llm("each", mode="per_item", depends_on=["paint"], prompt={"user": "what is it?"}, max_concurrency=1),
        llm("all", depends_on=["paint", "each"], prompt={"user": "and these?"}),
    ]
    store = open_sqlite_store(tmp_path / "engine.db")
    async with open_setting(store=store, registry=registry, artifacts=tmp_path / "artifacts") as setting:
        job = await setting.run(steps, ["cat", "dog"])
        assert job.status is JobStatus.SUCCEEDED, job.error
        cat, dog = PICTURE + b"cat", PICTURE + b"dog"
        asked = [call for call in registry.calls if call.operation is not Operation.IMAGE]
        assert [call.messages[-1].images for call in asked] == [(cat,), (dog,), (cat, dog)]
        assert job.result is not None
        artifact = job.result.items[0].data["artifact"]
        (tmp_path / "artifacts" / artifact["sha256"][:2] / artifact["sha256"]).unlink()
        request = RerunRequest(from_step_id=StepId("all"), reuse_upstream=True)
        again = await setting.engine.wait((await setting.engine.rerun(job.id, request)).id)
        assert again.error is not None
        assert again.error.code == "missing_dependency"
        assert artifact["sha256"] in again.error.message
    store.close()


@pytest.mark.parametrize("output_type", ["binary", "image"])
async def test_the_bytes_of_a_tool_become_an_artifact_and_never_a_text(tmp_path: Path, output_type: str) -> None:
    tools = [tool("raw", r"printf '\377\0\1PNG'"), tool("png", r"printf '\211PNG\r\n\032\nrest'")]
    made = {"kind": "custom", "output_type": output_type, "export": True}
    steps = [{"id": name, "provider_profile_id": name, **made} for name in ("raw", "png")]
    store = open_sqlite_store(tmp_path / "engine.db")
    async with (
        open_registry(tools, local_tool=LocalToolProvider(environment=os.environ)) as registry,
        open_setting(store=store, registry=registry, artifacts=tmp_path / "artifacts") as setting,
    ):
        job = await setting.run(steps)
        assert job.status is JobStatus.SUCCEEDED, job.error
        assert job.result is not None
        assert texts(job) == ["", ""]
        artifacts = [item.data["artifact"] for item in job.result.items]
        assert [artifact["mime_type"] for artifact in artifacts] == ["application/octet-stream", "image/png"]
        assert [artifact["bytes"] for artifact in artifacts] == [6, 12]
        kept = [tmp_path / "artifacts" / one["sha256"][:2] / one["sha256"] for one in artifacts]
        assert [file.read_bytes() for file in kept] == [b"\xff\x00\x01PNG", PICTURE + b"rest"]
        assert "provider_chunk" not in names(setting.stored_events(job.id))
        assert store.artifact_owned(job.id, artifacts[0]["id"])
    store.close()


async def test_a_text_of_a_binary_step_is_an_artifact_too(tmp_path: Path) -> None:
    steps = [
        llm("model", "echo", output_type="binary"),
        identity("map", output_type="binary", export=True),
        {"id": "hand", "kind": "custom", "config": {"handler": "loud"}, "output_type": "binary", "export": True},
    ]
    handlers = Handlers()
    handlers.add("loud", lambda item: item.text.upper())
    registry = ScriptedRegistry({"echo": [Script(echo=True)]})
    store = open_sqlite_store(tmp_path / "engine.db")
    async with open_setting(
        store=store, registry=registry, handlers=handlers, artifacts=tmp_path / "artifacts"
    ) as setting:
        job = await setting.run(steps, ["é"])
        assert job.status is JobStatus.SUCCEEDED, job.error
        assert job.result is not None
        assert texts(job) == ["é", "é", "É"]
        kept = [item.data["artifact"]["sha256"] for item in job.result.items]
        assert [(tmp_path / "artifacts" / name[:2] / name).read_text("utf-8") for name in kept] == ["é", "é", "É"]
    store.close()
