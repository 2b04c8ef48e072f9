"""Our providers against llama.cpp's own HTTP server, with a tiny model that says nonsense."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.provider_calls import Collected, chat_call, collect, embed_call, open_client
from tests.tiny_model import EMBEDDING, write_tiny_model

from pipeline_engine.models import ManagedServer, ProviderExtra, ProviderKind, ProviderOverride, ProviderProfile
from pipeline_engine.providers import registry
from pipeline_engine.providers.addresses import with_port
from pipeline_engine.providers.base import Chunk, Completion, ProviderCall
from pipeline_engine.providers.registry import ProviderRegistry, open_registry

pytestmark = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="llama.cpp (extra `local`) is not installed")

SERVER = str(Path(registry.__file__).with_name("builtin_server.py"))
LONG: dict[str, Any] = {"max_tokens": 300, "ignore_eos": True}
SLOT_FREE_LIMIT = 1.0  # seconds; measured: 2 to 5 ms


class NoTool:
    @asynccontextmanager
    async def stream(self, call: ProviderCall) -> AsyncIterator[AsyncIterator[list[Chunk | Completion]]]:
        raise NotImplementedError
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_model(path)
    return path


def profile(model: Path, profile_id: str, *arguments: str, **extra: Any) -> ProviderProfile:
    command = [sys.executable, "-I", SERVER, "--model", str(model), "--alias", profile_id, "--port", "{port}"]
    server = ManagedServer(
        command=[*command, "--context", "4096", "--threads", "1", *arguments], ready="http://127.0.0.1/health"
    )
    return ProviderProfile(
        id=profile_id,
        kind=ProviderKind.OPENAI,
        base_uri="http://127.0.0.1/v1",
        default_model=profile_id,
        extra=ProviderExtra(server=server, **extra),
    )


@asynccontextmanager
async def serving(*profiles: ProviderProfile) -> AsyncIterator[ProviderRegistry]:
    async with open_registry(profiles, local_tool=NoTool(), environ=os.environ) as opened:
        yield opened


async def ask(
    providers: ProviderRegistry, prompt: str = "the cat", *, job_id: str = "job", options: dict[str, Any], **fields: Any
) -> Collected:
    target = providers.resolve("tiny", ProviderOverride(options=options))
    return await collect(providers.stream(chat_call(target, prompt, **fields), job_id=job_id))


async def slots(port: int) -> list[dict[str, Any]]:
    async with (
        open_client() as client,
        client.send("GET", f"http://127.0.0.1:{port}/slots", headers={}, content=b"", connect_timeout_s=5) as answer,
    ):
        body = b""
        while piece := await answer.receive():
            body += piece
    return list(json.loads(body))


async def test_answers_stream_with_usage_and_finish_reason(model: Path) -> None:
    async with serving(profile(model, "tiny")) as providers:
        answer = await ask(providers, options={"max_tokens": 50, "ignore_eos": True, "temperature": 0})
        assert sum(map(len, answer.batches)) > 10  # in how many batches they come depends on how busy the machine is
        assert len(answer.text.split()) > 10
        assert answer.completion.finish_reason == "length"
        assert answer.completion.usage is not None
        assert answer.completion.usage.completion_tokens == 50
        assert answer.completion.usage.prompt_tokens > 5
        assert answer.completion.model == "tiny"
        again = await ask(providers, options={"max_tokens": 50, "ignore_eos": True, "temperature": 0, "stream": False})
        assert again.text == answer.text


async def test_a_schema_binds_the_model(model: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "big": {"type": "boolean"}},
        "required": ["colour", "big"],
        "additionalProperties": False,
    }
    async with serving(profile(model, "tiny")) as providers:
        answer = await ask(providers, options={}, max_tokens=200, json_schema=schema)
        value = json.loads(answer.text)
        assert value["colour"] in ("red", "blue")
        assert value["big"] in (True, False)
        assert answer.completion.finish_reason == "stop"


async def test_embeddings_come_in_the_order_of_the_texts(model: Path) -> None:
    async with serving(profile(model, "vectors", "--embedding", "--parallel", "1")) as providers:
        target = providers.resolve("vectors")
        texts = ["the cat sat", "a dog ran", "the lamp"]

        async def vectors_of(*inputs: str) -> list[list[float]]:
            answer = await collect(providers.stream(embed_call(target, *inputs), job_id="j"))
            return list(answer.completion.embeddings)

        together = await vectors_of(*texts)
        alone = [(await vectors_of(text))[0] for text in texts]
        assert [len(vector) for vector in together] == [EMBEDDING] * 3
        nearest = [min(range(3), key=lambda n: math.dist(vector, alone[n])) for vector in together]
        assert nearest == [0, 1, 2]


async def test_two_jobs_are_answered_at_the_same_time(model: Path) -> None:
    order: list[str] = []

    async with serving(profile(model, "tiny")) as providers:

        async def job(name: str) -> None:
            target = providers.resolve("tiny", ProviderOverride(options=LONG))
            async with providers.stream(chat_call(target), job_id=name) as batches:
                async for _ in batches:
                    order.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(job, "one")
            nursery.start_soon(job, "two")
    first_done = min(len(order) - order[::-1].index(name) for name in ("one", "two"))
    assert {"one", "two"} <= set(order[: first_done // 2])


async def test_a_cancelled_call_frees_its_slot(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports: list[int] = []

    def noted(address: str, port: int) -> str:
        ports.append(port)
        return with_port(address, port)

    monkeypatch.setattr(registry, "with_port", noted)
    async with serving(profile(model, "tiny")) as providers:
        target = providers.resolve("tiny", ProviderOverride(options={**LONG, "max_tokens": 3000}))
        with trio.CancelScope() as scope:
            async with providers.stream(chat_call(target), job_id="j") as batches:
                await anext(batches)
                assert any(slot["is_processing"] for slot in await slots(ports[0]))
                scope.cancel()
                await trio.lowlevel.checkpoint()
        cancelled_at = trio.current_time()
        while any(slot["is_processing"] for slot in await slots(ports[0])):
            pass
        took = trio.current_time() - cancelled_at
        assert took < SLOT_FREE_LIMIT, f"the slot was free after {took * 1000:.1f} ms"


async def test_many_calls_in_a_row_survive_the_servers_habit_of_closing_idle_connections(model: Path) -> None:
    async with serving(profile(model, "tiny")) as providers:
        for _ in range(8):
            assert (await ask(providers, options=LONG)).completion.finish_reason == "length"
            assert (await ask(providers, options={"max_tokens": 3, "ignore_eos": True})).text
