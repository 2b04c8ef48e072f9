"""The timeouts of a call, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from tests.provider_calls import Collected, chat_call, collect, target_of
from trio.testing import MockClock

from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.providers.base import BEGUN, Chunk, Completion, Operation, ProviderCall
from pipeline_engine.providers.watch import Batch, open_watched

END = [Completion()]


class SlowProvider:
    """Yields each batch after a pause in seconds."""

    def __init__(self, *script: tuple[float, Sequence[Chunk | Completion]], opens_after_s: float = 0) -> None:
        self._script = script
        self._opens_after_s = opens_after_s

    @asynccontextmanager
    async def stream(self, call: ProviderCall) -> AsyncIterator[AsyncIterator[Batch]]:
        async def batches() -> AsyncIterator[Batch]:
            for pause, batch in self._script:
                await trio.sleep(pause)
                yield list(batch)

        await trio.sleep(self._opens_after_s)
        yield batches()


async def ask(provider: SlowProvider, *, operation: Operation = Operation.CHAT, **settings: Any) -> Collected:
    call = chat_call(target_of("http://models.example", **settings), operation=operation)
    return await collect(open_watched(provider, call, note=lambda _: None))


async def failure(provider: SlowProvider, **settings: Any) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await ask(provider, **settings)
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.TIMEOUT, True)
    return caught.value


@pytest.mark.parametrize("provider", [SlowProvider((11, [Chunk("x")])), SlowProvider((0, END), opens_after_s=11)])
async def test_no_first_token(provider: SlowProvider, autojump_clock: MockClock) -> None:
    begin = trio.current_time()
    error = await failure(provider, first_token_timeout_s=10)
    assert str(error) == "http://models.example sent no token within 10 s (first_token_timeout_s)"
    assert trio.current_time() - begin == pytest.approx(10)


async def test_signs_of_life_are_no_first_token(autojump_clock: MockClock) -> None:
    provider = SlowProvider(*[(3.0, [])] * 5, (0, [Chunk("x")]))
    assert "sent no token" in str(await failure(provider, first_token_timeout_s=10, idle_timeout_s=5))


async def test_an_answer_that_has_begun_with_what_is_not_shown_has_its_first_token(autojump_clock: MockClock) -> None:
    noted: list[Batch] = []
    provider = SlowProvider(*[(3.0, [BEGUN]), (3.0, [])] * 5, (4, END))
    call = chat_call(target_of("http://models.example", first_token_timeout_s=10.0, idle_timeout_s=5.0))
    async with open_watched(provider, call, note=noted.append) as batches:
        assert [batch async for batch in batches] == noted == [END]
    provider = SlowProvider((3, [BEGUN]), (6, END))
    assert "fell silent in the middle" in str(await failure(provider, first_token_timeout_s=10, idle_timeout_s=5))


async def test_silence_between_tokens(autojump_clock: MockClock) -> None:
    begin = trio.current_time()
    error = await failure(SlowProvider((1, [Chunk("x")]), (6, END)), idle_timeout_s=5)
    assert "fell silent in the middle of its answer for 5 s (idle_timeout_s)" in str(error)
    assert trio.current_time() - begin == pytest.approx(6)


async def test_signs_of_life_keep_a_stream_alive(autojump_clock: MockClock) -> None:
    answer = await ask(SlowProvider((1, [Chunk("x")]), *[(4.0, [])] * 10, (4, END)), idle_timeout_s=5)
    assert answer.text == "x"


async def test_the_first_token_may_take_longer_than_the_next(autojump_clock: MockClock) -> None:
    assert (await ask(SlowProvider((100, [Chunk("x")]), (1, END)), idle_timeout_s=5)).text == "x"


async def test_the_whole_call_has_a_limit(autojump_clock: MockClock) -> None:
    error = await failure(SlowProvider(*[(2.0, [Chunk("x")])] * 100), timeout_s=31)
    assert "did not finish within 31 s (timeout_s)" in str(error)


async def test_a_slow_consumer_is_not_the_providers_fault(autojump_clock: MockClock) -> None:
    call = chat_call(target_of("http://models.example", idle_timeout_s=5.0))
    provider = SlowProvider((0, [Chunk("x")]), (1, END))
    async with open_watched(provider, call, note=lambda _: None) as batches:
        async for _ in batches:
            await trio.sleep(1000)


async def test_tools_watch_their_own_time(autojump_clock: MockClock) -> None:
    provider = SlowProvider((1000, [Chunk("x")]), (1000, END))
    assert (await ask(provider, operation=Operation.TOOL, timeout_s=5)).text == "x"


async def test_what_the_consumer_raises_passes_through() -> None:
    call = chat_call(target_of("http://models.example"))
    with pytest.raises(KeyError):
        async with open_watched(SlowProvider((0, END)), call, note=lambda _: None):
            raise KeyError
