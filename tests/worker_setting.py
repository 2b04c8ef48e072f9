"""The worker processes of a test, as the kernel sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from pipeline_engine import worker_process
from pipeline_engine.worker_processes import WorkerProcesses, open_worker_processes


def children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found |= set(map(int, (task / "children").read_text(encoding="ascii").split()))
    return found


@asynccontextmanager
async def opened_processes() -> AsyncIterator[WorkerProcesses]:
    """Worker processes of which none is left at the end."""
    before = children()
    async with open_worker_processes() as processes:
        yield processes
    assert children() <= before


async def new_child(before: set[int]) -> int:
    with trio.fail_after(20):
        while not (found := children() - before):  # noqa: ASYNC110  # nothing tells of it but /proc
            await trio.sleep(0.01)
    (process,) = found
    return process


def program_with(setting: str) -> str:
    """The program of a worker process with another value for one of its limits."""
    name = setting.partition(" ")[0]
    assert hasattr(worker_process, name)
    return (
        "import sys; sys.path[:] = {path!r}; from pipeline_engine import worker_process;"
        f" worker_process.{setting}; worker_process.main()"
    )
