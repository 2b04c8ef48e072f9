"""The picture of a run in the README: what it shows is what the events say."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from benchmarks.timeline import draw, read_timeline

from pipeline_engine.definitions import decode_definition
from pipeline_engine.documents import parse_document
from pipeline_engine_sdk import Event

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"


def events_of(*told: tuple[str, float, dict[str, Any]]) -> list[Event]:
    return [
        Event(event=name, job_id="job_1", ts=f"2026-01-01T00:00:{second:09.6f}Z", data=data, seq=seq)
        for seq, (name, second, data) in enumerate(told, start=1)
    ]


RUN = events_of(
    ("job_queued", 0.5, {"pipeline_type": "a<b"}),
    ("job_started", 1.0, {"pipeline_type": "a<b"}),
    ("step_started", 1.0, {"step_id": "s", "name": "Ask & answer"}),
    ("item_started", 1.5, {"step_id": "s", "shard_key": "s-0", "attempt": 1}),
    ("provider_chunk", 2.0, {"step_id": "s", "shard_key": "s-0", "attempt": 1}),
    ("provider_chunk", 2.5, {"step_id": "s", "shard_key": "s-0", "attempt": 1}),
    ("item_completed", 3.0, {"step_id": "s", "shard_key": "s-0"}),
    ("step_completed", 3.5, {"step_id": "s", "items_done": 1}),
    ("stream_finished", 4.0, {"status": "succeeded"}),
)


def test_times_are_seconds_from_the_start_of_the_job() -> None:
    line = read_timeline(RUN)
    step = line.steps["s"]
    item = step.items["s-0"]
    assert (line.seconds, line.pieces, line.events) == (3.0, 2, 9)
    assert (step.began, step.ended, step.done) == (0.0, 2.5, 1)
    assert (item.began, item.ended, item.pieces) == (0.5, 2.0, [1.0, 1.5])


def test_the_drawing_has_a_band_a_bar_and_a_tick_for_each() -> None:
    root = ET.fromstring(draw(read_timeline(RUN)))
    classes = [element.get("class") for element in root.iter()]
    assert (classes.count("step"), classes.count("item"), classes.count("piece")) == (1, 1, 1)
    (ticks,) = [element.get("d") or "" for element in root.iter() if element.get("class") == "piece"]
    assert ticks.count("M") == 2
    assert "Ask & answer" in [element.text for element in root.iter()]


def test_the_picture_shows_every_step_of_its_pipeline() -> None:
    text = (IMAGES / "run.yaml").read_text(encoding="utf-8")
    definition = decode_definition(parse_document(text, name="run.yaml").value)
    shown = [element.text for element in ET.parse(IMAGES / "run.svg").iter()]
    assert {step.title for step in definition.steps} <= set(shown)
