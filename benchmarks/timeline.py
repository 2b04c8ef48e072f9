"""A job's events as a drawing: when each step and each item ran, and when each piece of an answer came."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from pipeline_engine_sdk import Event, parse_timestamp

WIDTH = 860
LEFT, RIGHT, TOP, BOTTOM = 172, 84, 44, 34  # what surrounds the lanes
LANE, GAP, BETWEEN = 10, 3, 9  # heights: of an item, between items, between steps
LONGEST_NAME = 24  # characters
TICKS_AT_MOST = 12

_STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #24292f }
  .small { font-size: 11px; fill: #57606a }
  .title { font-size: 13px; font-weight: 600 }
  .paper { fill: #ffffff; stroke: #d0d7de }
  .grid { stroke: #d8dee4 }
  .step { fill: #57606a; fill-opacity: 0.14 }
  .item { fill: #0969da; fill-opacity: 0.28 }
  .piece { stroke: #0969da }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .small { fill: #9198a1 }
    .paper { fill: #0d1117; stroke: #3d444d }
    .grid { stroke: #2a313c }
    .step { fill: #9198a1; fill-opacity: 0.22 }
    .item { fill: #4493f8; fill-opacity: 0.34 }
    .piece { stroke: #79c0ff }
  }
"""


@dataclass
class Item:
    """An item of a step; times are seconds from the job's start."""

    began: float
    ended: float
    pieces: list[float] = field(default_factory=list)


@dataclass
class Step:
    name: str
    began: float
    ended: float
    done: int = 0
    items: dict[str | None, Item] = field(default_factory=dict)


@dataclass
class Timeline:
    pipeline: str
    steps: dict[str, Step] = field(default_factory=dict)
    seconds: float = 0.0
    pieces: int = 0
    events: int = 0


def read_timeline(events: Iterable[Event]) -> Timeline:
    """What the events of a whole job say, its steps in the order in which they began."""
    line = Timeline("")
    start: float | None = None
    for event in events:
        moment = parse_timestamp(event.ts)
        assert moment is not None
        data = event.data
        line.events += 1
        if event.event == "job_started":
            start = moment.timestamp()
            line.pipeline = data["pipeline_type"]
        if start is None:
            continue
        now = line.seconds = moment.timestamp() - start
        step = line.steps.get(str(data.get("step_id")))
        if event.event == "step_started":
            line.steps[data["step_id"]] = Step(data.get("name") or data["step_id"], now, now)
        elif step is not None:
            step.ended = now
            item = step.items.setdefault(data.get("shard_key"), Item(now, now)) if "attempt" in data else None
            if event.event == "provider_chunk" and item is not None:
                item.pieces.append(now)
                item.ended = now
                line.pieces += 1
            elif event.event == "item_completed" and data.get("shard_key") in step.items:
                step.items[data.get("shard_key")].ended = now
            elif event.event == "step_completed":
                step.done = data["items_done"]
    return line


def draw(line: Timeline) -> str:
    """The SVG: a band for each step, in it a bar for each item that a provider made, in that a tick for each piece."""
    height = TOP + sum(_height(step) + BETWEEN for step in line.steps.values()) + BOTTOM
    heading = f"{line.pipeline}: {line.events} events, {line.pieces} pieces of answers in {line.seconds:.1f} s"
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(heading)}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>',
        f'<text class="title" x="16" y="26">{escape(heading)}</text>',
        *_axis(line.seconds, height),
    ]
    y = TOP
    for step in line.steps.values():
        parts += _step(step, y, line.seconds)
        y += _height(step) + BETWEEN
    return "\n".join([*parts, "</svg>"]) + "\n"


def _step(step: Step, y: int, seconds: float) -> Sequence[str]:
    height = _height(step)
    left, right = _x(step.began, seconds), _x(step.ended, seconds)
    middle = y + height / 2 + 4
    name = step.name if len(step.name) <= LONGEST_NAME else f"{step.name[: LONGEST_NAME - 1]}…"
    parts = [
        f'<text x="{LEFT - 12}" y="{middle:g}" text-anchor="end">{escape(name)}</text>',
        _bar("step", left, y, right, height),
    ]
    lane = y + GAP
    for item in step.items.values():
        parts.append(_bar("item", _x(item.began, seconds), lane, _x(item.ended, seconds), LANE))
        ticks = "".join(f"M{_x(at, seconds):.1f} {lane}v{LANE}" for at in item.pieces)
        parts.append(f'<path class="piece" d="{ticks}"/>')
        lane += LANE + GAP
    took = _duration(step.ended - step.began)
    count = f"{step.done} × · " if step.done > 1 else ""
    parts.append(f'<text class="small" x="{right + 6:.1f}" y="{middle:g}">{count}{took}</text>')
    return parts


def _axis(seconds: float, height: int) -> Iterable[str]:
    unit = next(unit for unit in (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300) if seconds / unit <= TICKS_AT_MOST)
    bottom = height - BOTTOM + 4
    for number in range(math.floor(seconds / unit) + 1):
        x = _x(number * unit, seconds)
        yield f'<path class="grid" d="M{x:.1f} {TOP - 4}V{bottom}"/>'
        yield f'<text class="small" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{number * unit:g} s</text>'


def _bar(kind: str, left: float, y: int, right: float, height: int) -> str:
    width = max(right - left, 2)
    return f'<rect class="{kind}" x="{left:.1f}" y="{y}" width="{width:.1f}" height="{height}" rx="2"/>'


def _height(step: Step) -> int:
    return max(1, len(step.items)) * (LANE + GAP) + GAP


def _x(at: float, seconds: float) -> float:
    return LEFT + at / seconds * (WIDTH - LEFT - RIGHT)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
