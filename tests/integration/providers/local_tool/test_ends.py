"""How tools end: with their children, on a cancel, within their grace."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio
from tests.tool_setting import (
    SLEEP,
    processes,
    run,
    run_until,
    shell,
)

from pipeline_engine.models import Sandbox
from pipeline_engine.providers import process
from pipeline_engine.providers.local_tool import LocalToolProvider
from pipeline_engine.providers.process import only_zombies


async def test_a_background_child_does_not_hold_the_step(provider: LocalToolProvider) -> None:
    with trio.fail_after(3):
        answer = await run(provider, shell(f"{SLEEP} & echo done"))
    assert answer.text == "done\n"
    assert answer.completion is not None


async def test_a_background_child_that_ignores_sigterm_is_killed(provider: LocalToolProvider) -> None:
    with trio.fail_after(5):
        answer = await run(provider, shell(f"trap '' TERM; {SLEEP} & echo done", grace_s=600))
    assert answer.text == "done\n"


async def test_a_background_child_that_never_stops_writing_does_not_hold_the_step(provider: LocalToolProvider) -> None:
    with trio.fail_after(10):
        answer = await run(provider, shell("yes & echo done", max_output_bytes=4096))
    assert "y\n" in answer.text


async def test_what_a_background_child_writes_soon_after_the_exit_is_taken(
    provider: LocalToolProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "DRAIN_SILENCE", 20.0)  # else this depends on how busy the machine is
    monkeypatch.setattr(process, "DRAIN_LIMIT", 20.0)
    answer = await run(provider, shell("(sleep 0.1; echo late) & echo done"))
    assert answer.text == "done\nlate\n"


async def test_an_escaped_process_does_not_hold_the_step(provider: LocalToolProvider) -> None:
    script = f"setsid sh -c 'echo > escaped; exec {SLEEP}' & until test -e escaped; do sleep 0.01; done; echo done"
    with trio.fail_after(5):
        assert (await run(provider, shell(script))).text == "done\n"
        while not (survivors := processes(SLEEP)):  # noqa: ASYNC110 - the kernel has no event for that
            await trio.sleep(0.01)
        for pid in survivors:
            os.kill(pid, signal.SIGKILL)
        while processes(SLEEP):  # noqa: ASYNC110
            await trio.sleep(0.01)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(f"{SLEEP} & {SLEEP}", id="tree"),
        pytest.param(f"trap '' TERM; {SLEEP}", id="ignores SIGTERM"),
        pytest.param(f"{SLEEP} & (trap '' TERM; {SLEEP}) & wait", id="a child ignores SIGTERM"),
        pytest.param(f"kill -STOP $$; {SLEEP}", id="stopped"),
    ],
)
async def test_cancelling_ends_the_whole_group(provider: LocalToolProvider, script: str) -> None:
    with trio.fail_after(8), trio.CancelScope() as scope:
        async with provider.stream(shell(f"echo begun; {script}", grace_s=0.3)) as lists:
            await run_until("begun", lists)
            scope.cancel()
            async for _ in lists:
                pytest.fail("it went on")
    assert scope.cancelled_caught


async def test_cancelling_while_the_consumer_is_busy_ends_the_group(provider: LocalToolProvider) -> None:
    with trio.fail_after(8), trio.move_on_after(0.2) as scope:
        async with provider.stream(shell(f"echo begun; {SLEEP}")) as lists:
            await run_until("begun", lists)
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_cancelling_at_the_start_leaves_nothing(provider: LocalToolProvider) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        async with provider.stream(shell(SLEEP)) as lists:
            async for _ in lists:
                pytest.fail("it ran")
    assert scope.cancelled_caught


async def test_a_tool_has_its_grace_to_tidy_up(provider: LocalToolProvider, tmp_path: Path) -> None:
    # More than a pipe holds is written first: unless it is read, the tool cannot end in time.
    mark = tmp_path / "tidied"
    script = f"trap 'seq 100000; echo tidy > {mark}; exit' TERM; echo begun; while :; do sleep 0.01; done"
    with trio.fail_after(30), trio.CancelScope() as scope:
        async with provider.stream(shell(script, grace_s=20, sandbox=Sandbox(writable=[str(tmp_path)]))) as lists:
            await run_until("begun", lists)
            scope.cancel()
            await trio.sleep_forever()
    assert mark.read_text(encoding="utf-8") == "tidy\n"


async def test_the_grace_of_tools_that_end_and_of_later_ones_can_be_cut_short(provider: LocalToolProvider) -> None:
    async def cancelled() -> None:
        with trio.CancelScope() as scope:
            async with provider.stream(shell(f"trap '' TERM; echo begun; {SLEEP}", grace_s=600)) as lists:
                await run_until("begun", lists)
                scope.cancel()
                await trio.sleep_forever()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancelled)
            while not provider.end_grace.is_in_use:  # noqa: ASYNC110 - nobody else needs to know
                await trio.sleep(0.01)
            provider.end_grace.limit(0)
        await cancelled()


async def test_leaving_early_ends_the_tool(provider: LocalToolProvider) -> None:
    with trio.fail_after(8):
        async with provider.stream(shell(f"echo begun; {SLEEP}")) as lists:
            await run_until("begun", lists)


async def test_an_error_of_the_consumer_comes_through_unchanged(provider: LocalToolProvider) -> None:
    error = RuntimeError("the store is full")
    with pytest.raises(RuntimeError) as caught:  # noqa: PT012 - the error comes from within
        async with provider.stream(shell(f"echo begun; {SLEEP}")) as lists:
            await run_until("begun", lists)
            raise error
    assert caught.value is error


async def test_a_hundred_runs_leave_no_zombie_and_no_open_file(provider: LocalToolProvider) -> None:
    async with trio.open_nursery() as nursery:
        limiter = trio.CapacityLimiter(8)

        async def one(number: int) -> None:
            async with limiter:
                with trio.move_on_after(0.001 * number if number % 2 else 30):
                    await run(provider, shell("cat; true | true & :", stdin="x"))

        for number in range(100):
            nursery.start_soon(one, number)
    # The fixture nothing_is_left has the last word.


def test_a_group_with_a_living_process_is_not_dead() -> None:
    assert not only_zombies(os.getpgrp())


def test_a_group_that_does_not_exist_is_not_called_dead() -> None:
    assert not only_zombies(2**30)


def test_a_group_whose_only_process_is_a_zombie_is_dead() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {}, setpgroup=0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        assert only_zombies(pid)
    finally:
        os.waitpid(pid, 0)
