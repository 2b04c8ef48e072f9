"""The command line. This module imports next to nothing, so that a missing extra is told in words."""

from __future__ import annotations

import os
import sys

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command that the arguments name, and exit with its code."""
    _open_closed_streams()
    try:
        _run()
    except KeyboardInterrupt:  # at any moment, also while a command is being imported
        print("pipeline-engine: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def _open_closed_streams() -> None:
    """Standard streams that were closed (`>&-`) lead nowhere, and no file that is opened takes their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


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
