from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable

import pytest
import trio
from trio.testing import MockClock

from pipeline_engine.errors import ErrorCode, StepError
from pipeline_engine.models import ProviderKind
from pipeline_engine.providers.base import Operation, ProviderCall, Target
from pipeline_engine.providers.local_tool import LocalToolProvider, child_arguments, read_pieces
from pipeline_engine.providers.tool_output import ToolOutput

TARGET = Target(profile_id="t", kind=ProviderKind.LOCAL_TOOL, base_uri="", model="")


def scripted(writes: Iterable[tuple[float, bytes]]) -> Callable[[], Awaitable[bytes]]:
    """A read function: at each time (seconds from now) these bytes arrive; then the output ends."""
    started = trio.current_time()
    left = list(writes)

    async def read() -> bytes:
        await trio.lowlevel.checkpoint()
        if not left:
            return b""
        at, data = left[0]
        await trio.sleep_until(started + at)
        del left[0]
        return data

    return read


async def timed_pieces(
    writes: Iterable[tuple[float, bytes]], *, max_bytes: int = 4096, seconds: float = math.inf
) -> list[tuple[float, list[str]]]:
    started = trio.current_time()
    output = ToolOutput(max_bytes)
    timeline = []
    async for pieces in read_pieces(scripted(writes), output, started + seconds):
        timeline.append((round(trio.current_time() - started, 3), pieces))
    timeline.append((round(trio.current_time() - started, 3), output.finish()))
    return timeline


async def test_lines_that_come_within_50_ms_make_one_piece(autojump_clock: MockClock) -> None:
    timeline = await timed_pieces([(1.0, b"a\n"), (1.02, b"b\n"), (1.04, b"c\n"), (2.0, b"d\n"), (3.0, b"e\n")])
    assert timeline == [(1.05, ["a\nb\nc\n"]), (2.05, ["d\n"]), (3.0, ["e\n"])]


async def test_a_partial_line_is_seen_after_50_ms(autojump_clock: MockClock) -> None:
    timeline = await timed_pieces([(0.0, b"10%\r"), (1.0, b"20%\r"), (2.0, b"done\n")])
    assert timeline == [(0.05, ["10%\r"]), (1.05, ["20%\r"]), (2.0, ["done\n"])]


async def test_a_partial_line_behind_whole_ones_gets_time_to_end(autojump_clock: MockClock) -> None:
    timeline = await timed_pieces([(0.0, b"a\nb"), (0.08, b"c\n"), (1.0, b"d")])
    assert timeline == [(0.05, ["a\n"]), (0.1, ["bc\n"]), (1.0, ["d"])]


async def test_a_lot_of_output_does_not_wait(autojump_clock: MockClock) -> None:
    block = b"x" * 1023 + b"\n"
    timeline = await timed_pieces([(0.0, block * 64), (0.01, block * 65), (1.0, b"")], max_bytes=1 << 20)
    assert timeline == [
        (0.0, [block.decode() * 64]),
        (0.01, [block.decode() * 64]),
        (0.06, [block.decode()]),
        (1.0, []),
    ]


async def test_reading_stops_at_the_deadline(autojump_clock: MockClock) -> None:
    timeline = await timed_pieces([(0.0, b"a\n"), (1.99, b"b\n"), (300.0, b"c\n")], seconds=2)
    assert timeline == [(0.05, ["a\n"]), (2.0, ["b\n"]), (2.0, [])]


def test_the_child_gets_only_the_given_environment_and_its_own() -> None:
    call = ProviderCall(target=TARGET, command=["tool", "--flag"], env={"MY_TOKEN": "é", "LANG": "de_DE.UTF-8"})
    command, env = child_arguments(call, {"PATH": "/bin", "HOME": "/", "LANG": "C.UTF-8"})
    assert command == ["tool", "--flag"]
    assert env == {"PATH": "/bin", "HOME": "/", "LANG": "de_DE.UTF-8", "MY_TOKEN": "é"}


def test_half_a_surrogate_pair_does_not_stop_a_tool() -> None:
    command, _ = child_arguments(ProviderCall(target=TARGET, command=["echo", "a\ud800b"]), {})
    assert command == ["echo", "a?b"]


async def test_a_profile_without_a_command_says_so() -> None:
    provider = LocalToolProvider(environment={})
    with pytest.raises(StepError, match=r"^tool t has no command; set it in the profile$") as caught:
        async with provider.stream(ProviderCall(target=TARGET, operation=Operation.TOOL)):
            pytest.fail("it was started")
    assert caught.value.code is ErrorCode.TOOL_FAILED
