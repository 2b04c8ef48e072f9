"""The command `pipeline-engine` and the list of its subcommands, each imported when it is called."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click
from click.exceptions import NoSuchCommand

from pipeline_engine import __version__
from pipeline_engine.cli import EXIT_USAGE
from pipeline_engine.cli.examples import add_examples
from pipeline_engine.errors import PipelineEngineError

#: Each subcommand: its module, and the line that the overview shows, so that `--help` need not import them.
SUBCOMMANDS = {
    "run": ("pipeline_engine.cli.run", "Run one job without a daemon."),
    "serve": ("pipeline_engine.cli.serve", "Run the daemon; also without a command when there is no terminal."),
    "submit": ("pipeline_engine.cli.submit", "Submit a job to the daemon; with --follow show it to its end."),
    "follow": ("pipeline_engine.cli.follow", "Follow a job of the daemon to its end."),
    "jobs": ("pipeline_engine.cli.jobs", "List, show, cancel, rerun and delete jobs; a live view."),
    "pipelines": ("pipeline_engine.cli.pipelines", "List, show, validate, draw and register pipelines."),
    "providers": ("pipeline_engine.cli.providers", "List, change and test provider profiles."),
    "export": ("pipeline_engine.cli.export_jobs", "Write finished jobs into a file, as NDJSON; a daemon may run."),
    "import": ("pipeline_engine.cli.import_jobs", "Bring jobs of such a file into the store that no daemon holds."),
    "config": ("pipeline_engine.cli.config_show", "Show the settings in force, and where each comes from."),
    "init": ("pipeline_engine.cli.init", "Write a first pipeline to start from."),
    "convert": ("pipeline_engine.cli.convert", "Translate the Go templates of version 0.2."),
    "doctor": ("pipeline_engine.cli.doctor", "Check the installation, the daemon and its model servers."),
    "mcp": ("pipeline_engine.cli.mcp", "Serve agents and editors over the Model Context Protocol (stdio)."),
    "systemd": ("pipeline_engine.cli.systemd", "Install or remove the units for systemd."),
}

EXIT_FAILED = 1
EXIT_NO_READER = 141  # as a program ends that SIGPIPE has killed: 128 + 13


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        module, _ = SUBCOMMANDS[cmd_name]
        command = importlib.import_module(module).command
        assert isinstance(command, click.Command)
        add_examples(command, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except NoSuchCommand as exc:
            # Click looks for near names among the commands that are loaded.
            raise NoSuchCommand(exc.command_name, possibilities=SUBCOMMANDS, ctx=ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in SUBCOMMANDS.items()])

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run the command, and end the program with its exit code. Raises KeyboardInterrupt for any interrupt."""
        output = sys.stdout
        try:
            try:
                code = self._run(*args, **extra)
            finally:
                output.flush()  # what a command has left for the end of the program
        except SystemExit:
            # Click has seen it, and put something else in its place. Its own code would say that a job has failed.
            if sys.stdout is not output:
                sys.exit(EXIT_NO_READER)
            raise
        except OSError as exc:
            # Commands tell of files and connections themselves; what is left is standard output.
            if exc.filename is not None:
                raise
            # What it has not taken is written to nowhere, where the end of the interpreter would complain about it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
            if isinstance(exc, BrokenPipeError):  # as `head` wants it
                sys.exit(EXIT_NO_READER)
            is_closed = exc.errno == errno.EBADF
            words = "is closed" if is_closed else f"cannot be written: {exc.strerror}"
            click.echo(f"pipeline-engine: standard output {words}", err=True)
            sys.exit(EXIT_FAILED)
        sys.exit(code)

    def _run(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> int:
        """The exit code of a command that has not named one by sys.exit."""
        try:
            return super().main(args, prog_name, standalone_mode=False, **extra) or 0
        except click.ClickException as exc:
            exc.show()
            return exc.exit_code
        except click.Abort:
            raise KeyboardInterrupt from None  # click has put its own exception in place of it

    def invoke(self, ctx: click.Context) -> Any:
        """Errors of the engine are for people: a message, and the exit code for bad input."""
        try:
            return super().invoke(ctx)
        except PipelineEngineError as exc:
            click.echo(f"pipeline-engine: {exc.message}", err=True)
            ctx.exit(EXIT_USAGE)
        except BaseExceptionGroup as group:
            if group.subgroup(KeyboardInterrupt) is None:
                raise
            raise KeyboardInterrupt from None  # out of trio's nurseries it comes in groups


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pipeline-engine")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Pipeline Engine: runs pipelines of AI steps on this machine."""
    for stream in (sys.stdout, sys.stderr):
        # Whatever the locale says: the texts of models and sources must not end a program that prints them.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    if ctx.invoked_subcommand is None:
        if sys.stdin.isatty() or sys.stdout.isatty():
            click.echo(ctx.get_help())
        else:
            serve = cli.get_command(ctx, "serve")
            assert serve is not None
            ctx.invoke(serve)
