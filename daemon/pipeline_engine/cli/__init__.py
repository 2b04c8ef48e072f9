"""The command line. This module imports next to nothing, so that a missing extra is told in words."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that the arguments name, and exit with its code."""
    try:
        from pipeline_engine.cli.commands import cli  # noqa: PLC0415 - the extra may be missing
    except ModuleNotFoundError as exc:
        if exc.name is not None and exc.name.startswith("pipeline_engine"):
            raise
        words = f"the module {exc.name!r} is missing; install the daemon with: pip install 'pipeline-engine[daemon]'"
        print(f"pipeline-engine: {words}", file=sys.stderr)
        sys.exit(2)
    cli(prog_name="pipeline-engine")
