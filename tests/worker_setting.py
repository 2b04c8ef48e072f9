"""The worker processes of a test, as the kernel sees them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import trio

from pipeline_engine import worker_process


def children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found |= set(map(int, (task / "children").read_text(encoding="ascii").split()))
    return found


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
