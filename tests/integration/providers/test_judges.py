"""What our providers send equals what the official clients send for the same wish, field by field."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import ollama
import openai
import pytest
from tests.provider_calls import collect, open_client, target_of
from tests.scripted_server import Reply, Request, open_server

from pipeline_engine.decoding import Secret
from pipeline_engine.models import ProviderKind
from pipeline_engine.providers.base import Message, Operation, Provider, ProviderCall
from pipeline_engine.providers.image import ImageProvider
from pipeline_engine.providers.ollama import OllamaProvider
from pipeline_engine.providers.openai import OpenAiProvider

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PNG_TEXT = base64.b64encode(PNG).decode()
SCHEMA = {"type": "object", "properties": {"café": {"type": "string"}}, "required": ["café"]}

CHAT = Reply.sse({"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]}, b"data: [DONE]\n\n")
CHAT_WHOLE = Reply.json({"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}]})
EMBEDDINGS = Reply.json({"data": [{"index": number, "embedding": [1.0]} for number in range(2)]})
IMAGE = Reply.json({"created": 1, "data": [{"b64_json": PNG_TEXT}]})
OLLAMA_CHAT = Reply.ndjson({"message": {"role": "assistant", "content": "x"}, "done": True, "done_reason": "stop"})
OLLAMA_EMBED = Reply.json({"embeddings": [[1.0], [2.0]]})

Ask = Callable[[Any], Awaitable[Any]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A wish in our words and in the client's; `ours_alone` and `theirs_alone` differ on purpose."""

    kind: ProviderKind = ProviderKind.OPENAI
    reply: Reply = CHAT
    settings: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any]
    theirs: Ask
    ours_alone: dict[str, Any] = field(default_factory=dict)
    theirs_alone: dict[str, Any] = field(default_factory=dict)


def chats(**arguments: Any) -> Ask:
    async def ask(client: Any) -> None:
        given = {"model": "m", "stream": True, "stream_options": {"include_usage": True}, **arguments}
        answer = await client.chat.completions.create(**given)
        if given["stream"]:
            await answer.close()  # its iterators would be left to the garbage collector

    return ask


def talks(**arguments: Any) -> Ask:
    async def ask(client: Any) -> None:
        async for _ in await client.chat(model="m", stream=True, **arguments):
            pass

    return ask


CASES = {
    "a question": Case(
        call={"messages": [Message("user", "hello")]},
        theirs=chats(messages=[{"role": "user", "content": "hello"}]),
    ),
    "an answer in one piece": Case(
        reply=CHAT_WHOLE,
        settings={"stream": False},
        call={"messages": [Message("user", "hello")]},
        theirs=chats(messages=[{"role": "user", "content": "hello"}], stream=False, stream_options=openai.omit),
    ),
    "a system message, turns before, odd characters": Case(
        call={
            "messages": [
                Message("system", "Be brief.\n"),
                Message("user", 'a "quoted" \\ \u2028 line'),
                Message("assistant", "😀"),
                Message("user", "\u0000 é"),
            ]
        },
        theirs=chats(
            messages=[
                {"role": "system", "content": "Be brief.\n"},
                {"role": "user", "content": 'a "quoted" \\ \u2028 line'},
                {"role": "assistant", "content": "😀"},
                {"role": "user", "content": "\u0000 é"},
            ]
        ),
    ),
    "a limit and options": Case(
        settings={"options": {"temperature": 0.25, "seed": 7, "stop": ["\n\n"], "top_p": 1}},
        call={"messages": [Message("user", "u")], "max_tokens": 9},
        theirs=chats(
            messages=[{"role": "user", "content": "u"}], max_tokens=9, temperature=0.25, seed=7, stop=["\n\n"], top_p=1
        ),
    ),
    "an image to look at": Case(
        call={"messages": [Message("user", "what is it?", images=(PNG,))]},
        theirs=chats(
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "what is it?"},
                        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG_TEXT}"}},
                    ],
                }
            ]
        ),
    ),
    "a schema": Case(
        call={"messages": [Message("user", "u")], "json_schema": SCHEMA},
        theirs=chats(
            messages=[{"role": "user", "content": "u"}],
            response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
        ),
    ),
    "embeddings": Case(
        reply=EMBEDDINGS,
        call={"operation": Operation.EMBED, "inputs": ["a", "b"]},
        theirs=lambda client: client.embeddings.create(model="m", input=["a", "b"], encoding_format="float"),
        theirs_alone={"encoding_format": "float"},  # what servers do without it; not all of them know it
    ),
    "a picture": Case(
        reply=IMAGE,
        settings={"options": {"size": "256x256", "n": 1}},
        call={"operation": Operation.IMAGE, "messages": [Message("user", "a cat")]},
        theirs=lambda client: client.images.generate(model="m", prompt="a cat", size="256x256", n=1),
    ),
    "a question to Ollama": Case(
        kind=ProviderKind.OLLAMA,
        reply=OLLAMA_CHAT,
        settings={"options": {"temperature": 0, "num_ctx": 2048}, "keep_alive": "5m"},
        call={"messages": [Message("system", "s"), Message("user", "é", images=(PNG,))], "max_tokens": 9},
        theirs_alone={"tools": []},
        theirs=talks(
            messages=[{"role": "system", "content": "s"}, {"role": "user", "content": "é", "images": [PNG]}],
            options={"temperature": 0, "num_ctx": 2048, "num_predict": 9},
            keep_alive="5m",
        ),
    ),
    "a schema for Ollama": Case(
        kind=ProviderKind.OLLAMA,
        reply=OLLAMA_CHAT,
        call={"messages": [Message("user", "u")], "json_schema": SCHEMA},
        theirs_alone={"tools": []},
        theirs=talks(messages=[{"role": "user", "content": "u"}], format=SCHEMA),
    ),
    "JSON from Ollama": Case(
        kind=ProviderKind.OLLAMA,
        reply=OLLAMA_CHAT,
        call={"messages": [Message("user", "u")], "json_mode": True},
        theirs_alone={"tools": []},
        theirs=talks(messages=[{"role": "user", "content": "u"}], format="json"),
    ),
    "embeddings from Ollama": Case(
        kind=ProviderKind.OLLAMA,
        reply=OLLAMA_EMBED,
        settings={"keep_alive": 0},
        call={"operation": Operation.EMBED, "inputs": ["a", "b"]},
        theirs=lambda client: client.embed(model="m", input=["a", "b"], keep_alive=0),
    ),
}


async def ours(case: Case, url: str) -> None:
    base_uri = url if case.kind is ProviderKind.OLLAMA else f"{url}/v1"
    target = target_of(base_uri, case.kind, api_key=Secret("sk-test"), **case.settings)
    call = ProviderCall(target=target, **case.call)
    async with open_client() as client:
        provider: Provider = OpenAiProvider(client=client)
        if case.kind is ProviderKind.OLLAMA:
            provider = OllamaProvider(client=client)
        elif call.operation is Operation.IMAGE:
            provider = ImageProvider(client=client)
        await collect(provider.stream(call))


async def theirs(case: Case, url: str) -> None:
    if case.kind is ProviderKind.OLLAMA:
        client = ollama.AsyncClient(host=url, headers={"Authorization": "Bearer sk-test"})
        await case.theirs(client)
        await client.close()  # type: ignore[no-untyped-call]
        return
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-test", max_retries=0) as official:
        await case.theirs(official)


async def sent(ask: Callable[[Case, str], Awaitable[None]], case: Case) -> Request:
    async with open_server(case.reply) as server:
        await ask(case, server.url)
        [request] = server.requests
        return request


@pytest.mark.parametrize("name", CASES)
async def test_a_request_is_what_the_official_client_sends(name: str) -> None:
    case = CASES[name]
    mine, judge = await sent(ours, case), await sent(theirs, case)
    assert (mine.method, mine.target) == (judge.method, judge.target)
    for header in ("authorization", "content-type"):
        assert mine.headers[header] == judge.headers[header]
    for own, request in ((case.ours_alone, mine), (case.theirs_alone, judge)):
        assert own.items() <= request.json.items()
    assert without(mine.json, case.ours_alone) == without(judge.json, case.theirs_alone)


def without(body: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key not in keys}
