"""docs/performance.md: the figures as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measures import Figures

INTRODUCTION = """# Performance

Written by `make bench`. The daemon, a scripted model server and the clients are processes on one machine, on loopback.
Figures are medians with the lowest and the highest value of the same run in parentheses; a p99 is over all values of
the run. Each stands beside a baseline from the same minutes: absolute times say more about the machine than about the
program, and the processor of a virtual machine is often shared: where this page was made, the same program has been
faster and slower by a factor of 2.5 within a day. The speed of plain Python stands beside the load for that.
*The floor* is `benchmarks/floor.py`, a bare program on the same libraries: the same HTTP server, client connections and
database, and of a job only the request, its model calls, and a commit before and behind each.
"""

BOUNDS = """
## What bounds it

Jobs a second are bounded by one core: the daemon is one Python process with one event loop, and the clients and the
model server of this benchmark want their share of the same machine. The disk is not the bound: what all jobs write at
a time goes into one commit, and the thread that writes takes a tenth of the daemon's instructions. Of the rest, as a
sampling profiler sees it, a third is the model call (the request, the stream, its chunks as events), a fifth the call
of the API (checks, the answer), less than a tenth the reading of the socket, and what remains the job itself: its steps, its
events, its tasks. No function takes more than a few per cent; the floor shows what the libraries take before the first
line of the engine.

The first token, and one step, wait twice for the disk: the job is stored before it is acknowledged, and what is shown
is stored before it is shown. Each time costs the way to the thread that writes and back; the floor pays it too.
Where the provider pauses before its first token the processor rests, and wakes slowly: a whole job of one step, with both
waits and the call, takes less than what is added to such a token, and the floor adds most of that as well.

A start is the import of the libraries: what the store holds is not read, however much it is.

The default `max_concurrency` of a step is 8, so that a fanout over a local model does not drown it: 50 calls of 200 ms
then take seven rounds. With `max_concurrency: 50` they take one.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One measure, in words."""

    measure: str
    goal: str
    found: str
    baseline: str = "–"
    met: bool = True

    @classmethod
    def at_most(cls, measure: str, figures: Figures, goal: float, unit: str, baseline: str = "–") -> Row:
        return cls(measure, f"≤ {goal:,g} {unit}", figures.text(unit), baseline, met=figures.median <= goal)

    @classmethod
    def at_least(cls, measure: str, figures: Figures, goal: float, unit: str, baseline: str = "–") -> Row:
        return cls(measure, f"≥ {goal:,g}{unit}", figures.text(unit), baseline, met=figures.median >= goal)


def write_report(path: Path, machine: Mapping[str, str], rows: Sequence[Row]) -> None:
    lines = [INTRODUCTION, "| machine | |", "|---|---|", *(f"| {name} | {value} |" for name, value in machine.items())]
    lines += ["", "| measure | goal | found | baseline | |", "|---|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row.measure} | {row.goal} | {row.found} | {row.baseline} | {'' if row.met else 'missed'} |")
    missed = [f"- {row.measure}: {row.found}, where the goal is {row.goal}." for row in rows if not row.met]
    lines += ["", "## Missed goals", "", *(missed or ["None."]), BOUNDS]
    path.write_text("\n".join(lines), encoding="utf-8")
