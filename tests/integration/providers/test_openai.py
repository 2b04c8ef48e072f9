"""What servers that speak OpenAI's API answer, byte by byte."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from tests.provider_calls import Collected, chat_call, collect, embed_call, open_client, target_of
from tests.scripted_server import Reply, ScriptedServer, open_server

from pipeline_engine.decoding import Secret
from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.models import Usage
from pipeline_engine.providers.base import BEGUN, Chunk, Message, ProviderCall
from pipeline_engine.providers.openai import OpenAiProvider
from pipeline_engine.providers.watch import open_watched

DONE = b"data: [DONE]\n\n"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
PNG = b"\x89PNG\r\n\x1a\n" + b"rest"


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"model": "demo-1", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


STOP = delta("stop")
HELLO = Reply.sse(delta(role="assistant", content=""), delta(content="Hel"), delta(content="lo"), STOP, DONE)


async def ask(*replies: Reply, call: dict[str, Any] | None = None, **settings: Any) -> tuple[Collected, ScriptedServer]:
    """The answer to a chat call, for which the server sends these replies."""
    async with open_server(*replies) as server, open_client() as client:
        provider = OpenAiProvider(client=client)
        answer = await collect(provider.stream(chat_call(target_of(f"{server.url}/v1", **settings), **(call or {}))))
        return answer, server


async def failure(*replies: Reply, **settings: Any) -> ProviderError:
    async with open_server(*replies) as server, open_client() as client:
        provider = OpenAiProvider(client=client)
        with pytest.raises(ProviderError) as caught:
            await collect(provider.stream(chat_call(target_of(f"{server.url}/v1", **settings))))
        assert client.direct.busy == 0
        return caught.value


async def test_the_request() -> None:
    call = {
        "messages": [Message("system", "S"), Message("user", "look", images=(PNG,))],
        "max_tokens": 9,
        "json_schema": SCHEMA,
    }
    settings = {
        "api_key": Secret("sk-1"),
        "headers": {"X-Org": Secret("o")},
        "options": {"temperature": 0.2, "model": "x"},
    }
    _, server = await ask(HELLO, call=call, **settings)
    [request] = server.requests
    assert (request.method, request.target) == ("POST", "/v1/chat/completions")
    assert request.headers["authorization"] == "Bearer sk-1"
    assert request.headers["x-org"] == "o"
    assert request.headers["accept-encoding"] == "identity"
    assert request.json == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "S"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "look"},
                    {
                        "type": "image_url",
                        "image_url": {"url": "data:image/png;base64," + base64.b64encode(PNG).decode()},
                    },
                ],
            },
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.2,
        "max_tokens": 9,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
    }


async def test_a_stream_in_its_pieces() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    answer, server = await ask(Reply.sse(delta(content="Hel"), delta(content="lo"), STOP, usage, DONE))
    assert (answer.text, answer.completion.finish_reason, answer.completion.model) == ("Hello", "stop", "demo-1")
    assert answer.completion.usage == Usage(prompt_tokens=7, completion_tokens=2)
    assert len(server.requests) == 1


async def test_what_arrives_together_comes_out_together() -> None:
    reply = Reply(headers=HELLO.headers, chunks=HELLO.chunks, end="chunked", at_once=True)
    answer, _ = await ask(reply)
    assert answer.batches == [["Hel", "lo"]]


async def test_the_connection_is_used_again_after_the_end_mark() -> None:
    async with open_server(HELLO) as server, open_client() as client:
        provider = OpenAiProvider(client=client)
        for _ in range(3):
            await collect(provider.stream(chat_call(target_of(server.url))))
        assert server.connections == 1


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        pytest.param(
            [
                b": PROCESSING\n\n",
                b": PROCESSING\n\n:\n\n",
                b'id: 7\nretry: 3000\n: ping 17\ndata: {"choices":[{"delta":{"content":"Hi"}}]}\n\n',
                b": x\n\n",
                b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
                b": cost=0.1\ndata: [DONE]\n\n",
            ],
            "Hi",
            id="comments",
        ),
        pytest.param(
            [
                b'data:{"choices":[{"delta":{"content":"One "}}]}\r',
                b"\n\r",
                b'\ndata: {"choices":[{"index":0,\r',
                b'\ndata: "delta":{"content":"two"},"finish_reason":"stop"}]}\r',
                b"\n\r",
                b"\ndata:[DONE]\r\n\r\n",
            ],
            "One two",
            id="no space, CRLF, an event on two lines",
        ),
        pytest.param(
            [
                'data: {"choices":[{"delta":{"content":"a\u2028b\u2029c\u0085d"},"finish_reason":"stop"}]}\n\n'.encode(),
            ],
            "a\u2028b\u2029c\u0085d",
            id="other line separators",
        ),
        pytest.param(
            [
                bytes([byte])
                for byte in 'data: {"choices":[{"delta":{"content":"naïve 🦀"},"finish_reason":"stop"}]}\n\n'.encode()
            ],
            "naïve 🦀",
            id="cut at every byte",
        ),
        pytest.param(
            [
                b'data: {"choices":[{"delta":{"content":"ok \\ud83d"}}]}\n\n',
                b'data: {"choices":[{"delta":{"content":"\\ude00 done "}}]}\n\n',
                b'data: {"choices":[{"delta":{"content":"\\udc81"}}]}\n\n',
                DONE,
            ],
            "ok 😀 done \ufffd",
            id="half surrogate pairs",
        ),
        pytest.param(
            [
                b'data: {"choices":[],"prompt_filter_results":[{"prompt_index":0}]}\n\n',
                b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null}}]}\n\n',
                b"data: null\n\n",
                b'data: {"choices":null}\n\n',
                b'data: {"choices":[{"index":1,"delta":{"content":"another choice"}}]}\n\n',
                b'data: {"choices":[{"index":0,"delta":{"content":"Ja!"}}]}\n\n',
                b"data: [DONE]\n\n",
            ],
            "Ja!",
            id="choices that are empty, null, or another's",
        ),
        pytest.param(
            [
                b"event: ping\ndata: pong\n\n",
                b'event: completion\ndata: {"choices":[{"delta":{"content":[{"type":"text","text":"x"}]}}]}\n\n',
                b"data: [DONE]",
            ],
            "x",
            id="other event types, parts, no blank line at the end",
        ),
    ],
)
async def test_odd_streams(pieces: list[bytes], text: str) -> None:
    reply = Reply(headers={"content-type": "text/event-stream"}, chunks=pieces, delay_s=0.0005, end="chunked")
    answer, _ = await ask(reply)
    assert answer.text == text


DOCUMENT = {
    "model": "demo-1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Bonjour"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 4, "completion_tokens": 1},
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", json.dumps(DOCUMENT).encode()),
        ("application/json", json.dumps(DOCUMENT, indent=2).encode()),
        ("text/event-stream", json.dumps(DOCUMENT).encode() + b"\n\ndata: [DONE]\n\n"),
        ("text/plain", b"\n \n" + json.dumps(DOCUMENT).encode()),
    ],
)
async def test_one_json_object_instead_of_a_stream(stream: bool, content_type: str, body: bytes) -> None:
    reply = Reply(headers={"content-type": content_type}, chunks=[body[:20], body[20:]])
    answer, server = await ask(reply, stream=stream)
    assert (answer.text, answer.completion.finish_reason) == ("Bonjour", "stop")
    assert answer.completion.usage == Usage(prompt_tokens=4, completion_tokens=1)
    assert server.requests[0].json["stream"] is stream
    assert ("stream_options" in server.requests[0].json) is stream


async def test_a_stream_that_was_not_asked_for() -> None:
    answer, _ = await ask(HELLO, stream=False)
    assert answer.text == "Hello"


async def test_reasoning_is_kept_apart_and_not_doubled() -> None:
    answer, _ = await ask(
        Reply.sse(
            delta(reasoning_content="Let me "),
            delta(reasoning="think", reasoning_content="think"),
            delta(content="Yes"),
            DONE,
        )
    )
    assert (answer.reasoning, answer.text) == ("Let me think", "Yes")


async def test_tool_calls() -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":'}}
    rest = {"index": 0, "function": {"arguments": "1}"}}
    answer, _ = await ask(Reply.sse(delta(tool_calls=[call]), delta(tool_calls=[rest]), delta("tool_calls"), DONE))
    assert answer.completion.tool_calls == [{"id": "c1", "name": "f", "arguments": {"a": 1}}]
    assert answer.completion.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("piece", "batches"),
    [
        ({"role": "assistant", "content": ""}, [[]]),
        ({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": "{}"}}]}, [[BEGUN]]),
        ({"refusal": "I cannot"}, [[BEGUN]]),
        ({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "f"}}], "content": "x"}, [[Chunk("x")]]),
    ],
)
async def test_what_is_no_text_begins_an_answer_too(piece: dict[str, Any], batches: list[Any]) -> None:
    async with (
        open_server(Reply.sse(delta(**piece), end="stall")) as server,
        open_client() as client,
        OpenAiProvider(client=client).stream(chat_call(target_of(server.url))) as stream,
    ):
        assert [await anext(stream)] == batches


@pytest.mark.parametrize("end", ["chunked", "close", "cut", "reset"])
async def test_a_finish_reason_makes_an_answer_whole_however_it_ends(end: Any) -> None:
    answer, _ = await ask(Reply.sse(delta(content="Hi"), STOP, end=end))
    assert (answer.text, answer.completion.finish_reason) == ("Hi", "stop")


@pytest.mark.parametrize("end", ["chunked", "close", "cut", "reset", "stall"])
async def test_the_end_mark_makes_an_answer_whole_however_it_ends(end: Any) -> None:
    answer, _ = await ask(Reply.sse(delta(content="Hi"), DONE, end=end))
    assert (answer.text, answer.completion.finish_reason) == ("Hi", None)


PINGS = Reply(headers=HELLO.headers, chunks=[*HELLO.chunks[:-1], *[b": ping\n\n"] * 1000], delay_s=0.01, end="stall")


@pytest.mark.parametrize("reply", [Reply.sse(*HELLO.chunks[:-1], end="stall"), PINGS])
@pytest.mark.parametrize("settings", [{"idle_timeout_s": 1.0}, {"timeout_s": 1.0}])
async def test_no_timeout_voids_an_answer_that_is_whole(reply: Reply, settings: dict[str, Any]) -> None:
    async with open_server(reply) as server, open_client() as client:
        call = chat_call(target_of(server.url, **settings))
        answer = await collect(open_watched(OpenAiProvider(client=client), call, note=lambda _: None))
    assert (answer.text, answer.completion.finish_reason) == ("Hello", "stop")


async def test_counts_may_come_one_after_the_other_and_are_not_taken_back() -> None:
    events = [
        {**delta(content="x"), "usage": {"prompt_tokens": 7}},
        {**STOP, "usage": {"completion_tokens": 2}},
        {"choices": [], "usage": {}},
        {"choices": [], "usage": {"prompt_tokens": None, "completion_tokens": -1}},
    ]
    answer, _ = await ask(Reply.sse(*events, DONE))
    assert answer.completion.usage == Usage(prompt_tokens=7, completion_tokens=2)


async def test_text_behind_the_finish_reason_counts() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    answer, _ = await ask(Reply.sse(delta("stop", content="Hel"), delta(content="l"), delta(content="o"), usage, DONE))
    assert answer.text == "Hello"
    assert answer.completion.usage == Usage(prompt_tokens=7, completion_tokens=2)


@pytest.mark.parametrize(
    ("reply", "code", "retryable"),
    [
        (Reply.sse(delta(content="The capital of"), end="close"), ErrorCode.PROVIDER_TRUNCATED, True),
        (Reply.sse(delta(content="The"), b'data: {"choi', end="chunked"), ErrorCode.PROVIDER_TRUNCATED, True),
        (Reply.sse(delta(content="Here is "), end="reset"), ErrorCode.PROVIDER_UNREACHABLE, True),
        (Reply.sse(delta(content="Here is "), end="cut"), ErrorCode.PROVIDER_UNREACHABLE, True),
        (Reply.sse(delta(content=""), STOP, DONE), ErrorCode.PROVIDER_EMPTY, True),
        (Reply.sse(DONE), ErrorCode.PROVIDER_EMPTY, True),
        (Reply(), ErrorCode.PROVIDER_EMPTY, True),
        (Reply.json({"choices": []}), ErrorCode.PROVIDER_EMPTY, True),
        (Reply.sse(delta(reasoning="hm"), delta("length"), DONE), ErrorCode.OUTPUT_TRUNCATED, False),
        (
            Reply.sse(delta(content="One"), delta("content_filter", content=None), DONE),
            ErrorCode.CONTENT_FILTERED,
            False,
        ),
        (Reply.sse(delta(refusal="I can"), delta("stop", refusal="not"), DONE), ErrorCode.CONTENT_FILTERED, False),
        (Reply.sse(delta(content="x"), b"data: {oops\n\n", DONE), ErrorCode.PROVIDER_PROTOCOL, False),
        (Reply(headers={"content-type": "text/html"}, chunks=[b"<html>hi</html>"]), ErrorCode.PROVIDER_PROTOCOL, False),
        (Reply(chunks=[b"{oops"]), ErrorCode.PROVIDER_PROTOCOL, False),
        (Reply.json({"object": "list"}), ErrorCode.PROVIDER_PROTOCOL, False),
        (Reply.json([1]), ErrorCode.PROVIDER_PROTOCOL, False),
        (Reply.json({}, headers={"content-encoding": "gzip"}), ErrorCode.PROVIDER_PROTOCOL, False),
        (Reply.json({"error": {"message": "no", "code": 401}}), ErrorCode.PROVIDER_AUTH, False),
        (Reply.json([{"error": {"message": "no", "code": 429}}]), ErrorCode.PROVIDER_RATE_LIMITED, True),
        (Reply.sse(delta(content="x"), b"event: error\ndata: overloaded\n\n"), ErrorCode.PROVIDER_ERROR, True),
        (Reply.sse(delta(content="x"), delta("error"), DONE), ErrorCode.PROVIDER_ERROR, True),
        (Reply.json({"error": {"message": "x"}}, status=401), ErrorCode.PROVIDER_AUTH, False),
        (Reply(status=302, headers={"location": "https://x.example/"}), ErrorCode.PROVIDER_ERROR, False),
    ],
)
async def test_answers_that_are_no_success(reply: Reply, code: ErrorCode, retryable: bool) -> None:
    error = await failure(reply)
    assert (error.code, error.retryable) == (code, retryable), str(error)


async def test_an_error_in_the_middle_of_a_stream_keeps_the_providers_words() -> None:
    broken = {"error": {"code": 502, "message": "synthetic provider failure"}, **delta("error", content="")}
    error = await failure(Reply.sse(delta(content="The answer "), broken, DONE))
    assert (error.code, error.retryable) == (ErrorCode.PROVIDER_ERROR, True)
    assert "synthetic provider failure" in str(error)


@pytest.mark.parametrize("end", ["length", "close", "cut", "reset", "stall"])
@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (401, ErrorCode.PROVIDER_AUTH, False),
        (413, ErrorCode.PROVIDER_ERROR, False),
        (503, ErrorCode.PROVIDER_ERROR, True),
    ],
)
async def test_the_status_of_an_error_counts_however_its_body_ends(
    status: int, code: ErrorCode, end: Any, *, retryable: bool
) -> None:
    reply = Reply(status=status, chunks=[b'{"error":{"message":"words"}}'], end=end)
    async with open_server(reply) as server, open_client() as client:
        call = chat_call(target_of(server.url, first_token_timeout_s=1.0))
        with pytest.raises(ProviderError, match=rf"answered {status}: words$") as caught:
            await collect(open_watched(OpenAiProvider(client=client), call, note=lambda _: None))
    assert (caught.value.code, caught.value.retryable) == (code, retryable)


async def test_a_web_page_hints_at_the_address() -> None:
    error = await failure(Reply(headers={"content-type": "text/html"}, chunks=[b"<html>hi</html>"]))
    assert "is base_uri the address of the API?" in str(error)
    assert error.details["raw"] == "<html>hi</html>"


async def test_refused_parameters_are_adapted_and_remembered() -> None:
    def refusal(param: str, code: str) -> Reply:
        return Reply.json({"error": {"message": "no", "param": param, "code": code}}, status=400)

    replies = [refusal("max_tokens", "unsupported_parameter"), refusal("temperature", "unsupported_value"), HELLO]
    async with open_server(*replies) as server, open_client() as client:
        provider = OpenAiProvider(client=client)
        call = chat_call(target_of(server.url, options={"temperature": 0.3}), max_tokens=64)
        answer = await collect(provider.stream(call))
        assert answer.text == "Hello"
        assert [warning["parameter"] for warning in answer.completion.warnings] == ["max_tokens", "temperature"]
        bodies = [request.json for request in server.requests]
        assert [(body.get("max_tokens"), body.get("max_completion_tokens")) for body in bodies] == [
            (64, None),
            (None, 64),
            (None, 64),
        ]
        assert "temperature" not in bodies[2]
        await collect(provider.stream(call))
        assert len(server.requests) == 4


async def test_a_server_that_refuses_schema_and_json_mode_gets_neither() -> None:
    refusal = Reply.json({"error": {"message": "response_format is not supported"}}, status=400)
    answer, server = await ask(refusal, refusal, HELLO, call={"json_schema": SCHEMA})
    formats = [request.json.get("response_format", {}).get("type") for request in server.requests]
    assert formats == ["json_schema", "json_object", None]
    assert len(answer.completion.warnings) == 2


async def test_a_refusal_without_a_way_out_is_final() -> None:
    error = await failure(Reply.json({"error": {"message": "bad", "param": "model", "code": "invalid"}}, status=400))
    assert (error.code, error.retryable) == (ErrorCode.PROVIDER_ERROR, False)


async def embed(value: Any, *inputs: str) -> Collected:
    async with open_server(Reply.json(value)) as server, open_client() as client:
        call: ProviderCall = embed_call(target_of(f"{server.url}/v1", options={"dimensions": 2}), *inputs)
        answer = await collect(OpenAiProvider(client=client).stream(call))
        [request] = server.requests
        assert request.target == "/v1/embeddings"
        assert request.json == {"model": "m", "input": list(inputs), "dimensions": 2}
        return answer


async def test_embeddings_come_in_the_order_of_their_inputs() -> None:
    data = [{"index": 1, "embedding": [2.0, 2.0]}, {"index": 0, "embedding": [1.0, 1.0]}]
    answer = await embed({"data": data, "usage": {"prompt_tokens": 3, "total_tokens": 3}}, "cat", "dog")
    assert answer.completion.embeddings == [[1.0, 1.0], [2.0, 2.0]]
    assert answer.completion.usage == Usage(prompt_tokens=3)


@pytest.mark.parametrize("data", [None, [], [{"index": 0, "embedding": None}], [{"index": 1, "embedding": [1]}]])
async def test_embeddings_that_cannot_be_trusted_are_refused(data: Any) -> None:
    with pytest.raises(ProviderError) as caught:
        await embed({"data": data}, "cat")
    assert caught.value.code is ErrorCode.PROVIDER_PROTOCOL
