"""How the program ends, whatever a command does."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import trio

from pipeline_engine.cli import commands, main
from pipeline_engine.cli.commands import LazyGroup

Do = Callable[[], object]


@pytest.fixture
def end_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Do], int | str | None]:
    """The exit code of the program when its command does that."""

    def end_of(do: Do) -> int | str | None:
        @click.group(cls=LazyGroup, invoke_without_command=True)
        def group() -> None:
            do()

        monkeypatch.setattr(commands, "cli", group)
        monkeypatch.setattr(sys, "argv", ["pipeline-engine"])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    return end_of


def interrupt() -> None:
    raise KeyboardInterrupt


def interrupt_in_groups() -> None:
    async def tasks() -> None:
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            inner.start_soon(trio.sleep_forever)
            outer.start_soon(trio.sleep_forever)
            interrupt()

    trio.run(tasks)


def abort() -> None:
    raise click.Abort


@pytest.mark.parametrize("do", [interrupt, interrupt_in_groups, abort])
def test_an_interrupt_is_told_in_a_line(
    end_of: Callable[[Do], object], do: Do, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of(do) == 130
    assert capsys.readouterr().err.strip() == "pipeline-engine: interrupted"


def test_an_interrupt_of_the_import_is_told_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Finder:
        def find_spec(self, name: str, *others: object) -> None:
            interrupt()

    monkeypatch.delitem(sys.modules, "pipeline_engine.cli.commands")
    monkeypatch.delattr(sys.modules["pipeline_engine.cli"], "commands")
    monkeypatch.setattr(sys, "meta_path", [Finder()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "pipeline-engine: interrupted\n")


def test_a_command_names_the_exit_code(end_of: Callable[[Do], object]) -> None:
    assert end_of(lambda: None) == 0
    assert end_of(lambda: sys.exit(3)) == 3


def test_a_fault_of_ours_is_not_taken_for_one_of_the_output(end_of: Callable[[Do], object], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        end_of(lambda: os.open(tmp_path / "none", os.O_RDONLY))
