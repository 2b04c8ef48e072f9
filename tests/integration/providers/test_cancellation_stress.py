"""Thousands of calls that are cancelled at random moments leave nothing behind."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import trio
from tests.provider_calls import chat_call, collect

from pipeline_engine.models import ProviderExtra, ProviderKind, ProviderProfile
from pipeline_engine.providers.base import Chunk, Completion, ProviderCall
from pipeline_engine.providers.registry import ProviderRegistry, open_registry

CALLS = 5000
AT_ONCE = 40
MAX_CONCURRENCY = 24  # less than AT_ONCE: some are cancelled while they wait for the limit
LONGEST_LIFE = 0.05  # seconds

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _event(value: object) -> bytes:
    data = b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


TOKEN = _event({"choices": [{"index": 0, "delta": {"content": "x "}}]})
END = _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}) + _event(b"[DONE]") + b"0\r\n\r\n"


class Server:
    """Answers `now` in a burst, `slow` slowly, and other prompts in a random way: also never, or with a head alone."""

    def __init__(self) -> None:
        self.open = 0
        self.requests = 0
        self._random = random.Random(1)

    async def serve(self, stream: trio.SocketStream) -> None:
        self.open += 1
        try:
            async with stream:
                while request := await stream.receive_some():
                    self.requests += 1
                    await self._answer(stream, request)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.open -= 1

    async def _answer(self, stream: trio.SocketStream, request: bytes) -> None:
        manner = 3 if b'"now"' in request else 2 if b'"slow"' in request else self._random.randrange(4)
        if manner >= 1:
            await stream.send_all(HEAD)
        if manner == 2:
            for _ in range(10):
                await stream.send_all(TOKEN)
                await trio.sleep(0.002)
        if manner == 3:
            await stream.send_all(TOKEN * 10)
        if manner >= 2:
            await stream.send_all(END)


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class NoTool:
    @asynccontextmanager
    async def stream(self, call: ProviderCall) -> AsyncIterator[AsyncIterator[list[Chunk | Completion]]]:
        raise NotImplementedError
        yield


async def cancel_at_random(registry: ProviderRegistry, numbers: count[int]) -> None:
    """Make calls until all numbers are used up; each is cancelled after some time, or after some of its answer.

    Time alone would not do: on a busy machine most calls would end before they had been sent.
    """
    while (number := next(numbers)) < CALLS:
        chance = random.Random(number)
        with trio.CancelScope() as scope:
            if number % 2:
                prompt, pieces = "other", CALLS
                scope.deadline = trio.current_time() + chance.uniform(0, LONGEST_LIFE)
            else:
                prompt, pieces = chance.choice(["now", "slow"]), chance.randrange(12)
            call = chat_call(registry.resolve("p"), prompt)
            async with registry.stream(call, job_id=f"job{number % 7}") as batches:
                async for _ in batches:
                    pieces -= 1
                    if pieces < 0:
                        scope.cancel()


async def test_cancelled_calls_leave_nothing_behind_and_the_next_is_served_at_once() -> None:
    server = Server()
    async with trio.open_nursery() as server_nursery:
        listeners = await server_nursery.start(trio.serve_tcp, server.serve, 0)
        port = listeners[0].socket.getsockname()[1]
        profile = ProviderProfile(
            id="p",
            kind=ProviderKind.OPENAI,
            base_uri=f"http://127.0.0.1:{port}/v1",
            extra=ProviderExtra(max_concurrency=MAX_CONCURRENCY),
        )
        async with open_registry([profile], local_tool=NoTool()) as registry:
            await collect(registry.stream(chat_call(registry.resolve("p"), "now"), job_id="before"))
            tasks, files = trio.lowlevel.current_statistics().tasks_living, _open_files()
            numbers = count()
            async with trio.open_nursery() as call_nursery:
                for _ in range(AT_ONCE):
                    call_nursery.start_soon(cancel_at_random, registry, numbers)

            with trio.fail_after(1):
                answer = await collect(registry.stream(chat_call(registry.resolve("p"), "now"), job_id="after"))
            assert answer.text == "x " * 10
            assert server.requests >= CALLS / 2
            assert registry.limited() == {"p": (0, 0)}
            transport = registry._entries["p"].client.direct
            assert transport.busy == 0
            # What is kept are idle connections; each has a file and a task of the server at its other end.
            kept = transport.idle - 1
            with trio.fail_after(5):
                while server.open > transport.idle:  # noqa: ASYNC110 - the server's task ends when it reads the end
                    await trio.sleep(0.01)
            await trio.sleep(0.05)
            assert trio.lowlevel.current_statistics().tasks_living == tasks + kept
            assert _open_files() == files + 2 * kept
        server_nursery.cancel_scope.cancel()
