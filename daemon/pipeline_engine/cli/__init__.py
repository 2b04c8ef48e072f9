"""The command line. This module imports next to nothing, so that a missing extra is told in words."""

from __future__ import annotations

import fcntl
import os
import signal
import sys

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command that the arguments name, and exit with its code."""
    serves = sys.argv[1:2] in ([], ["serve"])
    if serves:
        # It would end a daemon that does not listen to it yet; it waits until that does.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    _open_closed_streams(needs_stdout=not serves)
    try:
        _run()
    except KeyboardInterrupt:  # at any moment, also while a command is being imported
        print("pipeline-engine: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def _open_closed_streams(*, needs_stdout: bool) -> None:
    """Let no file that is opened take the place of a standard stream that was closed (`>&-`).

    Its use fails with EBADF, as it would in other programs: no output must get lost, and no input be empty. What goes to
    standard error is lost alone, and what goes to the standard output of a daemon, which has no results there.
    """
    stdout = os.O_RDONLY if needs_stdout else os.O_WRONLY
    for name, mode, flags in (("stdin", "r", os.O_WRONLY), ("stdout", "w", stdout), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode, encoding="utf-8"))


def stdin_is_closed() -> bool:
    """Whether there was no standard input when the program was started."""
    return fcntl.fcntl(0, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY


def _run() -> None:
    try:
        from pipeline_engine.cli.commands import cli  # noqa: PLC0415 - the extra may be missing
    except ModuleNotFoundError as exc:
        if exc.name is not None and exc.name.startswith("pipeline_engine"):
            raise
        words = f"the module {exc.name!r} is missing; install the daemon with: pip install 'pipeline-engine[daemon]'"
        print(f"pipeline-engine: {words}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    cli(prog_name="pipeline-engine")
