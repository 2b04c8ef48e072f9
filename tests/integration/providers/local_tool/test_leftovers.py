"""What is left of tools when the daemon is killed, and of the process that cleans up behind it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio
from tests.tool_setting import SLEEP, children, processes, run, run_until, shell

from pipeline_engine.providers.leftovers import Leftovers
from pipeline_engine.providers.local_tool import LocalToolProvider

ROOT = Path(__file__).parents[4]
PATIENCE = 20.0  # seconds; nothing here takes more than a fraction of it

#: Starts a tool that has children and a file in its scratch directory, and is killed while they run.
KILLED = """
import os, signal, sys
import trio
from tests.tool_setting import run_until, shell
from pipeline_engine.providers.leftovers import Leftovers
from pipeline_engine.providers.local_tool import LocalToolProvider

async def main(scratch_root, script):
    provider = LocalToolProvider(environment=os.environ, scratch_root=scratch_root, leftovers=Leftovers())
    async with provider.stream(shell(script)) as lists:
        await run_until("ready", lists)
        os.kill(os.getpid(), signal.SIGKILL)

trio.run(main, *sys.argv[1:])
"""


def until_none_is_left(scratch_root: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while processes(SLEEP) or any(scratch_root.iterdir()):
        assert time.monotonic() < deadline, (processes(SLEEP), list(scratch_root.iterdir()))
        time.sleep(0.02)


@asynccontextmanager
async def opened_leftovers() -> AsyncIterator[Leftovers]:
    before = children()
    leftovers = Leftovers()
    try:
        yield leftovers
    finally:
        await leftovers.aclose()
    assert children() == before


def test_nothing_of_a_tool_outlives_a_daemon_that_is_killed(scratch_root: Path) -> None:
    script = f"mkdir -p a/b; touch a/b/c; {SLEEP} & ( {SLEEP} & ) ; echo ready; {SLEEP}"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(scratch_root), script], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL
    until_none_is_left(scratch_root)


async def test_a_tool_that_ends_is_crossed_out(scratch_root: Path) -> None:
    async with opened_leftovers() as leftovers:
        provider = LocalToolProvider(environment=os.environ, scratch_root=str(scratch_root), leftovers=leftovers)
        assert (await run(provider, shell("echo done"))).text == "done\n"
        assert leftovers._noted == set()


async def test_the_process_is_started_again_if_it_dies(scratch_root: Path) -> None:
    async with opened_leftovers() as leftovers:
        provider = LocalToolProvider(environment=os.environ, scratch_root=str(scratch_root), leftovers=leftovers)
        async with provider.stream(shell(f"echo ready; {SLEEP}")) as lists:
            await run_until("ready", lists)
            first = leftovers._process
            assert first is not None
            first.kill()
            await first.wait()
            assert (await run(provider, shell("echo done"))).text == "done\n"
            assert leftovers._process is not first
            # The new one knows of the tool that was there before it.
            pipe, leftovers._pipe = leftovers._pipe, -1
            os.close(pipe)
            with trio.fail_after(PATIENCE):
                while processes(SLEEP):  # noqa: ASYNC110 - the kernel tells nobody
                    await trio.sleep(0.01)


async def test_a_process_that_does_not_listen_is_replaced_and_kills_nothing(scratch_root: Path) -> None:
    async with opened_leftovers() as leftovers:
        provider = LocalToolProvider(environment=os.environ, scratch_root=str(scratch_root), leftovers=leftovers)
        async with provider.stream(shell(f"touch kept; echo ready; {SLEEP}")) as lists:
            await run_until("ready", lists)
            deaf = leftovers._process
            assert deaf is not None
            deaf.send_signal(signal.SIGSTOP)
            with suppress(BlockingIOError):
                while True:
                    os.write(leftovers._pipe, b" \n")
            assert (await run(provider, shell("echo done"))).text == "done\n"  # finds the pipe full
            assert (await run(provider, shell("echo done"))).text == "done\n"  # has another one started
            assert leftovers._process is not deaf
            assert deaf.returncode == -signal.SIGKILL
            assert len(processes(SLEEP)) == 1
            assert (await run(provider, shell(f"ls {scratch_root}/*/kept"))).text.endswith("/kept\n")
