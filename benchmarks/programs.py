"""How long small programs take from their start to their end: an import of the SDK, the help of the command."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.measures import Figures
from benchmarks.processes import environment
from benchmarks.report import Row

BASELINE = "import httpx"
#: What the daemon is made of: no start of it can be faster than their import.
LIBRARIES = "import apsw, click, hypercorn.protocol.h11, httpx, jmespath, jsonschema, minijinja, quart_trio, regex, structlog, yaml"
PROGRAMS: dict[str, Sequence[str]] = {
    "httpx": ["-c", BASELINE],
    "sdk": ["-c", "import pipeline_engine_sdk"],
    "help": ["-m", "pipeline_engine", "--help"],
}
GOALS = (("sdk", "python -c 'import pipeline_engine_sdk'", 150), ("help", "pipeline-engine --help", 300))


def run_ms(arguments: Sequence[str]) -> float:
    """A process of this Python from its start to its end, in milliseconds."""
    began = time.monotonic()
    subprocess.run([sys.executable, *arguments], env=environment(), stdout=subprocess.DEVNULL, check=True)
    return (time.monotonic() - began) * 1000


def measure_programs(*, rounds: int) -> list[Row]:
    """A row for each program, beside the import of httpx, which the SDK cannot do without."""
    for arguments in PROGRAMS.values():
        run_ms(arguments)  # compiles, and brings the files into memory
    found = {name: Figures() for name in PROGRAMS}
    for _ in range(rounds):
        for name, arguments in PROGRAMS.items():
            found[name].values.append(run_ms(arguments))
    rows = []
    for name, measure, goal in GOALS:
        ratios = [mine / base for mine, base in zip(found[name].values, found["httpx"].values, strict=True)]
        baseline = f"`python -c '{BASELINE}'` {found['httpx'].text('ms')}; the ratio is {Figures(ratios).text('×')}"
        rows.append(Row.at_most(f"`{measure}`, start → end", found[name], goal, "ms", baseline))
    return rows
