"""Profiles, limits, timeouts and numbers around real calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio
from tests.provider_calls import chat_call, collect, image_call
from tests.scripted_server import Reply, open_server

from pipeline_engine.decoding import Secret
from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.models import ProviderExtra, ProviderKind, ProviderOverride, ProviderProfile
from pipeline_engine.providers.base import Chunk, Completion, Operation, ProviderCall
from pipeline_engine.providers.registry import ProviderRegistry, open_registry

HELLO = Reply.json({"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]})
STALL = Reply.sse({"choices": [{"delta": {"content": "x"}}]}, end="stall")
BROKEN = Reply.json({"error": {"message": "no"}}, status=400)
LIMITED = Reply.json({"error": {"message": "slow down"}}, status=429, headers={"retry-after": "3"})


class EchoTool:
    """Answers with what it gets."""

    @asynccontextmanager
    async def stream(self, call: ProviderCall) -> AsyncIterator[AsyncIterator[list[Chunk | Completion]]]:
        async def batches() -> AsyncIterator[list[Chunk | Completion]]:
            yield [Chunk(call.stdin), Completion()]

        yield batches()


def profile(
    base_uri: str, profile_id: str = "p", kind: ProviderKind = ProviderKind.OPENAI, **extra: Any
) -> ProviderProfile:
    return ProviderProfile(id=profile_id, kind=kind, base_uri=base_uri, extra=ProviderExtra(**extra))


def registry_of(*profiles: ProviderProfile) -> AbstractAsyncContextManager[ProviderRegistry]:
    return open_registry(profiles, local_tool=EchoTool())


async def ask(registry: ProviderRegistry, profile_id: str = "p", *, job_id: str = "job", **override: Any) -> str:
    target = registry.resolve(profile_id, ProviderOverride(**override))
    return (await collect(registry.stream(chat_call(target), job_id=job_id))).text


async def test_a_call_that_fails_says_what_to_do() -> None:
    missing = Reply.json({"error": "model 'tiny' not found"}, status=404)
    async with (
        open_server(missing) as server,
        registry_of(profile(server.url, kind=ProviderKind.OLLAMA)) as registry,
    ):
        with pytest.raises(ProviderError, match=r"has no model 'tiny'; to get it, run: ollama pull tiny$"):
            await ask(registry, default_model="tiny")
        with pytest.raises(ProviderError, match=r"refused\); is Ollama running\? start it with `ollama serve`"):
            await ask(registry, base_uri="http://127.0.0.1:9")
    async with registry_of(profile("http://127.0.0.1:9/v1")) as registry:
        with pytest.raises(ProviderError, match=r"refused\); is the model server running\?"):
            await registry.list_models("p")


async def test_a_call_is_counted() -> None:
    async with open_server(HELLO, BROKEN) as server, registry_of(profile(server.url)) as registry:
        assert await ask(registry) == "hello"
        with pytest.raises(ProviderError):
            await ask(registry)
        metrics = registry.metrics()
        assert metrics["provider_call_latency"].pop("openai") >= 0
        zero = {"ollama": 0, "image": 0, "local_tool": 0}
        assert metrics == {
            "provider_call_count": {"openai": 2, **zero},
            "provider_call_latency": zero,
            "provider_call_errors": {"openai": 1, **zero},
            "provider_chunk_count": {"openai": 1, **zero},
        }


async def test_tokens_retries_and_the_time_to_the_first_piece_are_counted() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    reply = Reply.json({"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}], "usage": usage})
    async with open_server(reply, BROKEN) as server, registry_of(profile(server.url)) as registry:
        await ask(registry)
        with pytest.raises(ProviderError):
            await ask(registry)
        registry.count_retry("p")
        registry.count_retry("gone")
        stats, kind = registry.stats, ProviderKind.OPENAI
        assert (stats.prompt_tokens[kind], stats.completion_tokens[kind], stats.retries[kind]) == (7, 2, 1)
        assert stats.first_token[kind].counts[-1] == 1
        assert 0 < stats.first_token[kind].total < 10


async def test_what_runs_and_what_waits_is_told_by_profile() -> None:
    async with open_server(STALL) as server, registry_of(profile(server.url, max_concurrency=1)) as registry:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, registry)
            nursery.start_soon(ask, registry)
            await server.wait_for_requests(1)
            assert registry.limited() == {"p": (1, 1)}
            assert registry.concurrency() == {"p": 1}
            nursery.cancel_scope.cancel()
        assert registry.limited() == {"p": (0, 0)}


async def test_an_error_holds_no_key_of_any_profile() -> None:
    told = Reply.json({"error": {"message": "the keys are sk-of-p and sk-of-q"}}, status=400)
    async with open_server(told) as server:
        first = ProviderProfile(id="p", kind=ProviderKind.OPENAI, base_uri=server.url, api_key=Secret("sk-of-p"))
        second = ProviderProfile(id="q", kind=ProviderKind.OPENAI, base_uri=server.url, api_key=Secret("sk-of-q"))
        async with registry_of(first, second) as registry:
            with pytest.raises(ProviderError) as caught:
                await ask(registry)
    assert "sk-of" not in str(caught.value) + repr(caught.value.details)
    assert "the keys are *** and ***" in caught.value.message


async def test_unknown_profiles_and_impossible_calls_are_errors_and_reach_no_server() -> None:
    async with open_server(HELLO) as server, registry_of(profile(server.url, kind=ProviderKind.OLLAMA)) as registry:
        with pytest.raises(ProviderError, match="no provider profile 'q'"):
            registry.resolve("q")
        with pytest.raises(ProviderError, match="of the kind ollama and cannot do: image"):
            await collect(registry.stream(image_call(registry.resolve("p")), job_id="j"))
        assert server.requests == []


async def test_tools_run_through_the_registry() -> None:
    tool = profile("", kind=ProviderKind.LOCAL_TOOL, command=["cat"])
    async with registry_of(tool) as registry:
        call = ProviderCall(target=registry.resolve("p"), operation=Operation.TOOL, stdin="in")
        assert (await collect(registry.stream(call, job_id="j"))).text == "in"


async def test_profiles_come_and_go() -> None:
    async with registry_of(profile("http://b", "b"), profile("http://a", "a")) as registry:
        assert [one.id for one in registry.profiles()] == ["a", "b"]
        registry.remove("a")
        registry.remove("never there")
        registry.put(profile("http://c", "b"))
        assert [one.base_uri for one in registry.profiles()] == ["http://c"]
        assert registry.get("a") is None


async def test_a_replaced_profile_finishes_its_calls_and_then_closes() -> None:
    first = Reply(headers=HELLO.headers, chunks=HELLO.chunks, delay_s=0.05)
    async with open_server(first) as old, open_server(HELLO) as new, registry_of(profile(old.url)) as registry:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, registry)
            await old.wait_for_requests(1)
            registry.put(profile(new.url))
            assert await ask(registry) == "hello"
        assert len(new.requests) == 1
        with trio.fail_after(1):
            await old.wait_until_all_closed()


async def test_waiting_for_a_limit_costs_no_timeout_and_cancelling_closes_at_once() -> None:
    settings: dict[str, Any] = {"max_concurrency": 1, "first_token_timeout_s": 0.5}
    async with open_server(STALL, HELLO) as server, registry_of(profile(server.url, **settings)) as registry:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, registry)
                await server.wait_for_requests(1)
                nursery.start_soon(ask, registry)
                await trio.sleep(0.6)  # longer than the timeout of a call that has begun
                assert len(server.requests) == 1
                scope.cancel()
        with trio.fail_after(1):
            await server.requests[0].gone.wait()
        assert await ask(registry) == "hello"
        assert len(server.requests) == 2


async def test_three_hundred_cancelled_calls_leave_no_slot_behind() -> None:
    async with open_server(STALL) as server, registry_of(profile(server.url, max_concurrency=10)) as registry:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(lambda job: ask(registry, job_id=job), f"job{number}")
                await trio.sleep(0.02)
                nursery.cancel_scope.cancel()
        with trio.fail_after(5):
            await server.wait_until_all_closed()
        server.replies = [HELLO]
        with trio.fail_after(2):
            assert await ask(registry) == "hello"
        assert registry.metrics()["provider_call_errors"]["openai"] == 0


async def test_idle_stream_times_out_and_closes() -> None:
    async with open_server(STALL) as server, registry_of(profile(server.url, idle_timeout_s=0.05)) as registry:
        with pytest.raises(ProviderError, match="idle_timeout_s") as caught:
            await ask(registry)
        assert caught.value.code is ErrorCode.TIMEOUT
        with trio.fail_after(1):
            await server.requests[0].gone.wait()


async def test_a_silent_server_times_out_at_the_first_token() -> None:
    silent = Reply(end="silent")
    async with open_server(silent) as server, registry_of(profile(server.url, first_token_timeout_s=0.05)) as registry:
        with pytest.raises(ProviderError, match="first_token_timeout_s"):
            await ask(registry)


async def test_a_429_narrows_the_limit_for_all_jobs() -> None:
    async with open_server(LIMITED) as server, registry_of(profile(server.url, max_concurrency=4)) as registry:
        with pytest.raises(ProviderError) as caught:
            await ask(registry)
        assert (caught.value.code, caught.value.retry_after_s) == (ErrorCode.PROVIDER_RATE_LIMITED, 3)
        server.replies = [STALL]
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(lambda job: ask(registry, job_id=job), f"job{number}")
            await server.wait_for_requests(3)
            await trio.sleep(0.05)
            assert len(server.requests) == 3
            nursery.cancel_scope.cancel()


async def test_a_request_that_is_larger_than_the_rate_narrows_nothing() -> None:
    body = {"error": {"message": "Request too large", "type": "tokens", "code": "rate_limit_exceeded"}}
    async with (
        open_server(Reply.json(body, status=413)) as server,
        registry_of(profile(server.url, max_concurrency=4)) as registry,
    ):
        with pytest.raises(ProviderError, match="answered 413: Request too large") as caught:
            await ask(registry)
        assert (caught.value.code, caught.value.retryable) == (ErrorCode.PROVIDER_RATE_LIMITED, False)
        assert registry.concurrency() == {"p": 4}


async def test_an_openai_profile_makes_images_too() -> None:
    reply = Reply.json({"data": [{"b64_json": "iVBORw0KGgo="}]})
    async with open_server(reply) as server, registry_of(profile(server.url)) as registry:
        answer = await collect(registry.stream(image_call(registry.resolve("p")), job_id="j"))
        assert answer.completion.images == [b"\x89PNG\r\n\x1a\n"]


async def test_the_proxies_of_the_environment_do_not_hijack_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    proxies = {"http": "http://127.0.0.1:9", "all": "socks5h://127.0.0.1:9"}
    async with (
        open_server(HELLO) as server,
        open_registry([profile(server.url)], local_tool=EchoTool(), proxies=proxies) as registry,
    ):
        assert await ask(registry) == "hello"
        assert await ask(registry, base_uri=f"http://localhost:{server.port}") == "hello"
