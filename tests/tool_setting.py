"""Calls of local tools, and what is left of their processes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from pipeline_engine.errors import StepError
from pipeline_engine.models import ProviderKind
from pipeline_engine.providers.base import Chunk, Completion, Operation, ProviderCall, Target
from pipeline_engine.providers.local_tool import LocalToolProvider

MIB = 1024 * 1024
SLEEP = f"sleep 300.{os.getpid()}"  # no other process on this machine has these arguments


class Answer:
    """What a tool answered, as far as it came."""

    def __init__(self) -> None:
        self.chunks: list[str] = []
        self.completion: Completion | None = None

    @property
    def text(self) -> str:
        return "".join(self.chunks)

    def add(self, parts: list[Chunk | Completion]) -> None:
        for part in parts:
            assert self.completion is None
            if isinstance(part, Completion):
                self.completion = part
            else:
                assert part.kind == "text"
                assert part.content
                self.chunks.append(part.content)


def make_call(
    *command: str, stdin: str = "", env: Mapping[str, str] | None = None, binary: bool = False, **target: Any
) -> ProviderCall:
    return ProviderCall(
        target=Target(profile_id="t", kind=ProviderKind.LOCAL_TOOL, base_uri="", model="", **target),
        operation=Operation.TOOL,
        command=command,
        env=env or {},
        stdin=stdin,
        binary=binary,
    )


def shell(script: str, **options: Any) -> ProviderCall:
    return make_call("sh", "-c", script, **options)


def open_files() -> set[int]:
    # Looking opens the directory itself, which has a number too, but is closed again.
    return {int(path.name) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


def stat_fields(path: Path) -> list[str]:
    """Of a /proc/PID: state, parent, group …"""
    try:
        return (path / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def children() -> list[str]:
    """Our own, zombies too."""
    return [path.name for path in Path("/proc").glob("[0-9]*") if stat_fields(path)[1:2] == [str(os.getpid())]]


def processes(command: str) -> list[int]:
    """Those that run this command and are no zombies."""
    wanted = command.replace(" ", "\0") + "\0"
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if line == wanted and stat_fields(path)[:1] != ["Z"]:
            found.append(int(path.name))
    return found


async def run(provider: LocalToolProvider, call: ProviderCall, answer: Answer | None = None) -> Answer:
    answer = answer or Answer()
    with trio.fail_after(30):
        async with provider.stream(call) as lists:
            async for parts in lists:
                answer.add(parts)
    return answer


async def fail(provider: LocalToolProvider, call: ProviderCall) -> tuple[StepError, Answer]:
    answer = Answer()
    with pytest.raises(StepError) as caught:
        await run(provider, call, answer)
    assert answer.completion is None
    return caught.value, answer


async def run_until(text: str, lists: AsyncIterator[list[Chunk | Completion]]) -> None:
    seen = ""
    async for parts in lists:
        seen += "".join(part.content for part in parts if isinstance(part, Chunk))
        if text in seen:
            return
    pytest.fail(f"the tool ended without {text!r}")
