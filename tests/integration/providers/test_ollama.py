"""What an Ollama server answers, line by line."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from tests.provider_calls import Collected, chat_call, collect, embed_call, open_client, target_of
from tests.scripted_server import Reply, ScriptedServer, open_server

from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.models import ProviderKind, Usage
from pipeline_engine.providers.base import Message, Target
from pipeline_engine.providers.ollama import OllamaProvider

PNG = b"\x89PNG\r\n\x1a\n" + b"rest"


def line(content: str = "", **fields: Any) -> dict[str, Any]:
    return {"model": "demo:1b", "message": {"role": "assistant", "content": content}, "done": False, **fields}


END = line(done=True, done_reason="stop", prompt_eval_count=26, eval_count=6)


def ollama(server: ScriptedServer, **settings: Any) -> Target:
    return target_of(server.url, ProviderKind.OLLAMA, **settings)


async def ask(reply: Reply, call: dict[str, Any] | None = None, **settings: Any) -> tuple[Collected, ScriptedServer]:
    async with open_server(reply) as server, open_client() as client:
        stream = OllamaProvider(client=client).stream(chat_call(ollama(server, **settings), **(call or {})))
        return await collect(stream), server


async def failure(reply: Reply, call: dict[str, Any] | None = None) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await ask(reply, call)
    return caught.value


async def test_the_request() -> None:
    call = {
        "messages": [Message("system", "S"), Message("user", "U", images=(PNG,))],
        "max_tokens": 9,
        "json_schema": {"type": "object"},
    }
    options = {"num_ctx": 4096, "num_predict": 5, "think": False}
    _, server = await ask(Reply.ndjson(line("x"), END), call, options=options, keep_alive="5m")
    [request] = server.requests
    assert request.target == "/api/chat"
    assert "authorization" not in request.headers
    assert request.json == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "U", "images": [base64.b64encode(PNG).decode()]},
        ],
        "stream": True,
        "think": False,
        "options": {"num_ctx": 4096, "num_predict": 9},
        "keep_alive": "5m",
        "format": {"type": "object"},
    }


async def test_json_mode_without_a_schema() -> None:
    _, server = await ask(Reply.ndjson(line("x"), END), {"json_mode": True})
    assert server.requests[0].json["format"] == "json"


async def test_lines_and_characters_may_be_cut_anywhere() -> None:
    head = (
        json.dumps(line(message={"thinking": "Hmm "})) + "\n" + json.dumps(line(message={"thinking": "yes"})) + "\n"
    ).encode()
    text = (json.dumps(line("Zm\u2028ö"), ensure_ascii=False) + "\n" + json.dumps(line("r!")) + "\n").encode()
    cut = text.index("ö".encode()) + 1
    end = json.dumps(END).encode()  # without a line's end
    answer, _ = await ask(Reply.ndjson(head + text[:cut], text[cut:-9], text[-9:], end))
    assert (answer.reasoning, answer.text) == ("Hmm yes", "Zm\u2028ör!")
    assert (answer.completion.finish_reason, answer.completion.model) == ("stop", "demo:1b")
    assert answer.completion.usage == Usage(prompt_tokens=26, completion_tokens=6)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
async def test_one_json_object_instead_of_a_stream(stream: bool, indent: int | None) -> None:
    body = json.dumps({**END, "message": {"content": "whole"}}, indent=indent).encode()
    answer, server = await ask(Reply.json(body), stream=stream)
    assert answer.text == "whole"
    assert server.requests[0].json["stream"] is stream


async def test_a_careless_object_with_line_ends_in_its_strings() -> None:
    answer, _ = await ask(Reply(chunks=[b'{"message":{"content":"one\ntwo"},"done":true}']))
    assert answer.text == "one\ntwo"


async def test_what_follows_the_end_counts_nothing() -> None:
    reply = Reply.ndjson(
        line("x"), json.dumps(END).encode() + b"\n<p>bye</p>\n" + json.dumps(line("y")).encode() + b"\n"
    )
    assert (await ask(reply))[0].text == "x"


async def test_tool_calls_are_whole_and_get_ids() -> None:
    calls = [{"function": {"name": name, "arguments": {"a": 1}}} for name in ("f", "f")]
    answer, _ = await ask(Reply.ndjson(line(message={"content": "", "tool_calls": calls}), END))
    assert answer.completion.tool_calls == [
        {"id": "call_0", "name": "f", "arguments": {"a": 1}},
        {"id": "call_1", "name": "f", "arguments": {"a": 1}},
    ]


async def test_what_is_no_count_of_tokens_counts_nothing() -> None:
    for prompt, completion, usage in (
        (True, 6, Usage(completion_tokens=6)),
        (-3, 6, Usage(completion_tokens=6)),
        (26, 2**53, Usage(prompt_tokens=26)),
        (True, -1, None),
    ):
        end = line(done=True, done_reason="stop", prompt_eval_count=prompt, eval_count=completion)
        answer, _ = await ask(Reply.ndjson(line("x"), end))
        assert answer.completion.usage == usage


@pytest.mark.parametrize("end", ["chunked", "close", "cut", "reset", "stall"])
async def test_the_last_line_makes_an_answer_whole_however_it_ends(end: Any) -> None:
    answer, _ = await ask(Reply.ndjson(line("x"), END, end=end))
    assert (answer.text, answer.completion.finish_reason) == ("x", "stop")


async def test_an_old_server_gives_no_reason() -> None:
    answer, _ = await ask(Reply.ndjson(line("x"), line(done=True)))
    assert (answer.completion.finish_reason, answer.completion.usage) == ("stop", None)


@pytest.mark.parametrize(
    ("reply", "code", "retryable"),
    [
        (Reply.ndjson(line("Par"), {"error": "out of memory"}), ErrorCode.PROVIDER_ERROR, True),
        (Reply.ndjson(line(done=True, done_reason="load")), ErrorCode.PROVIDER_EMPTY, False),
        (Reply.ndjson(END), ErrorCode.PROVIDER_EMPTY, True),
        (Reply(), ErrorCode.PROVIDER_EMPTY, True),
        (Reply.ndjson(line("half"), end="close"), ErrorCode.PROVIDER_TRUNCATED, True),
        (Reply.ndjson(line("half"), end="cut"), ErrorCode.PROVIDER_UNREACHABLE, True),
        (Reply.ndjson(line(done=True, done_reason="length")), ErrorCode.OUTPUT_TRUNCATED, False),
        (Reply(chunks=[b"<html>\n</html>"]), ErrorCode.PROVIDER_PROTOCOL, False),
        (Reply.ndjson(line("half"), b"<p>busy</p>\n", END), ErrorCode.PROVIDER_PROTOCOL, False),
        (Reply.ndjson(line("half"), b'{"message":{"content":"}}', end="close"), ErrorCode.PROVIDER_TRUNCATED, True),
        (Reply(chunks=[b"{\n\n"]), ErrorCode.PROVIDER_PROTOCOL, False),
        (Reply.ndjson(b"[1]\n"), ErrorCode.PROVIDER_PROTOCOL, False),
        (Reply.json({"error": "server busy"}, status=503), ErrorCode.PROVIDER_ERROR, True),
        (Reply.json({"error": "bad option"}, status=400), ErrorCode.PROVIDER_ERROR, False),
    ],
)
async def test_answers_that_are_no_success(reply: Reply, code: ErrorCode, retryable: bool) -> None:
    error = await failure(reply)
    assert (error.code, error.retryable) == (code, retryable), str(error)


async def test_a_missing_model_is_told() -> None:
    error = await failure(Reply.json({"error": 'model "m" not found, try pulling it first'}, status=404))
    assert error.code is ErrorCode.MODEL_NOT_FOUND
    assert str(error).endswith("has no model 'm'")


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=404, chunks=[b"404 page not found"]),
        Reply.json({"detail": "Not Found"}, status=404),
        Reply.json({"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}, status=404),
    ],
)
async def test_a_wrong_address_is_not_a_missing_model(reply: Reply) -> None:
    error = await failure(reply)
    assert error.code is ErrorCode.PROVIDER_ERROR
    assert "is it the address of an Ollama server?" in str(error)


async def test_an_empty_prompt_is_not_sent() -> None:
    error = await failure(Reply.ndjson(END), {"messages": [Message("system", "S"), Message("user", "")]})
    assert (error.code, error.retryable) == (ErrorCode.PROVIDER_EMPTY, False)
    assert "the prompt is empty" in str(error)


async def test_embeddings() -> None:
    reply = Reply.json({"model": "m", "embeddings": [[1, 2], [3, 4]], "prompt_eval_count": 5})
    async with open_server(reply) as server, open_client() as client:
        call = embed_call(ollama(server, keep_alive=0, options={"num_ctx": 8}), "cat", "dog")
        answer = await collect(OllamaProvider(client=client).stream(call))
        assert answer.completion.embeddings == [[1.0, 2.0], [3.0, 4.0]]
        assert answer.completion.usage == Usage(prompt_tokens=5)
        [request] = server.requests
        assert request.target == "/api/embed"
        assert request.json == {"model": "m", "input": ["cat", "dog"], "keep_alive": 0, "options": {"num_ctx": 8}}


@pytest.mark.parametrize(
    ("options", "tokens", "characters", "warned"),
    [
        ({"num_ctx": 512}, 512, 9, True),
        ({"num_ctx": 512}, 511, 9, True),
        ({"num_ctx": 512}, 500, 9000, False),
        ({}, 4096, 9000, True),
        ({}, 2048, 9000, True),
        ({}, 4096, 5000, False),
        ({}, 4000, 90000, False),
    ],
)
async def test_a_prompt_that_fills_the_context_was_cut(
    options: dict[str, int], tokens: int, characters: int, *, warned: bool
) -> None:
    end = line(done=True, done_reason="stop", prompt_eval_count=tokens, eval_count=6)
    call = {"messages": [Message("user", "x" * characters)]}
    answer, _ = await ask(Reply.ndjson(line("x"), end), call, options=options)
    assert [warning["code"] for warning in answer.completion.warnings] == (["prompt_truncated"] if warned else [])


async def test_tool_calls_of_several_lines_stay_apart() -> None:
    def tool_call(name: str) -> dict[str, Any]:
        calls = [{"function": {"name": name, "arguments": {}}}]
        return {"message": {"role": "assistant", "content": "", "tool_calls": calls}, "done": False}

    answer, _ = await ask(Reply.ndjson(*(tool_call(f"t{n}") for n in range(20)), END))
    assert [call["name"] for call in answer.completion.tool_calls] == [f"t{n}" for n in range(20)]
