"""The examples in the help of each command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from pipeline_engine.cli.commands import SUBCOMMANDS, cli
from pipeline_engine.cli.examples import EXAMPLES


def all_commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(cli)
    for name in SUBCOMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", one) for inner, one in command.commands.items())


def test_every_command_has_an_example() -> None:
    assert EXAMPLES.keys() == {name for name, _ in all_commands()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_help_ends_with_examples_that_stand_on_their_lines(name: str) -> None:
    done = CliRunner().invoke(cli, [*name.split(), "--help"])
    _, _, end = done.output.partition("\n  Examples:\n")
    assert [line.strip() for line in end.splitlines()] == [f"pipeline-engine {line}" for line in EXAMPLES[name]]


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_the_example_is_taken_by_the_parser(line: str) -> None:
    arguments = shlex.split(re.split(r" [|<>] ", line)[0])
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        name = arguments.pop(0)
        found = command.get_command(context, name)
        assert found is not None
        command, context = found, click.Context(found, info_name=name, parent=context)
    command.make_context(context.info_name, arguments)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("pipeline-engine su", "plain,submit"),
        ("pipeline-engine jobs ca", "plain,cancel"),
        ("pipeline-engine run --dr", "plain,--dry-run"),
        ("pipeline-engine run fir", "file,fir"),
        ("pipeline-engine submit fir", "file,fir"),
        ("pipeline-engine run first.yaml --source fir", "file,fir"),
        ("pipeline-engine pipelines put fir", "file,fir"),
    ],
)
def test_a_shell_can_complete_commands_options_and_files(words: str, expected: str) -> None:
    environment = {
        "_PIPELINE_ENGINE_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = CliRunner().invoke(cli, prog_name="pipeline-engine", env=environment)
    assert done.output == f"{expected}\n"
