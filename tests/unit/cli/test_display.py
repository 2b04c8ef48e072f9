from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from pipeline_engine.cli.display import TOKEN_LINES, LiveDisplay, PlainDisplay, print_error, print_item_errors

Event = dict[str, Any]


def event(name: str, /, **data: Any) -> Event:
    return {"event": name, "data": data}


def chunk(content: str, index: int = 0) -> Event:
    return event("provider_chunk", step_id="a", attempt=1, index=index, content=content, kind="text")


def last_frame(*events: Event) -> str:
    """What a terminal shows in the end, without its control sequences: the frame that nothing wiped any more."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=60, height=40, color_system=None, legacy_windows=False)
    display = LiveDisplay(console)
    for one in events:
        display.show(one)
    display.close()
    return stream.getvalue().rpartition("\x1b[2K")[2]


LINES = [f"line {number}" for number in range(TOKEN_LINES + 5)]


def test_the_text_of_a_job_that_does_not_succeed_stays_on_the_terminal() -> None:
    events = [chunk("\n".join(LINES) + "\nhalf a sen"), chunk("tence", index=1)]
    cancelled = event("step_cancelled", step_id="a", name="A", status="cancelled")
    shown = last_frame(*events, cancelled, event("job_cancelled", status="cancelled"))
    assert all(line in shown for line in LINES)
    assert "half a sentence" in shown
    assert "half a sentence" in last_frame(*events)  # it was only left


def test_the_text_of_a_job_that_succeeds_gives_way_to_its_result() -> None:
    completed = event("step_completed", step_id="a", name="A", status="success")
    shown = last_frame(chunk("token"), completed, event("job_completed", status="succeeded"))
    assert "A" in shown
    assert "token" not in shown


@pytest.mark.parametrize(
    ("execution", "reason"),
    [
        ({"reason": "when is false: options.x"}, "when is false: options.x"),
        ({"reason": "it needs b, which failed"}, "it needs b, which failed"),
        ({"reused_from": "job_1", "items_total": 1, "items_done": 1}, "reused from job_1"),
    ],
)
def test_a_skipped_step_says_why(execution: dict[str, Any], reason: str) -> None:
    skipped = event("step_skipped", step_id="a", name="A", status="skipped", **execution)
    stream = io.StringIO()
    PlainDisplay(stream).show(skipped)
    assert stream.getvalue() == f"A: skipped ({reason})\n"
    assert reason in last_frame(skipped)


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        ({"code": "cancelled", "message": "by the user"}, "cancelled", "job cancelled: by the user\n"),
        (
            {"code": "tool_failed", "message": "exit 3", "details": {"step_id": "a", "stderr": "no\x1b[31m\n"}},
            "failed",
            "job failed in a: tool_failed: exit 3\nno\ufffd[31m\n",
        ),
        (
            {"code": "tool_failed", "message": "exit 3", "details": {"step_id": "a", "shard_key": "a-1"}},
            "failed",
            "job failed in a-1: tool_failed: exit 3\n",
        ),
        (  # a per_item step keeps the shard keys of the step before it
            {"code": "tool_failed", "message": "exit 3", "details": {"step_id": "check", "shard_key": "rows-0"}},
            "failed",
            "job failed in check (rows-0): tool_failed: exit 3\n",
        ),
    ],
)
def test_an_error_is_told_with_its_place_and_without_saying_anything_twice(
    error: dict[str, Any], status: str, words: str
) -> None:
    stream = io.StringIO()
    print_error(error, status=status, stream=stream)
    assert stream.getvalue() == f"pipeline-engine: {words}"


@pytest.mark.parametrize(
    ("key", "place"), [("rows-0", "row (rows-0)"), ("row-0", "row-0"), ("row-x-0", "row (row-x-0)")]
)
def test_an_item_of_another_step_is_told_with_the_step_that_failed(key: str, place: str) -> None:
    error = {"code": "tool_failed", "message": "exit 3", "details": {"step_id": "row", "shard_key": key}}
    stream = io.StringIO()
    display = PlainDisplay(stream)
    display.show(event("step_retrying", step_id="row", shard_key=key, attempt=2, delay_s=1, error=error))
    display.show(event("step_completed", step_id="row", name="Row", status="success", errors=[error]))
    print_item_errors([error], stream=stream)
    assert stream.getvalue().splitlines() == [
        f"{place}: exit 3; attempt 2 in 1 s",
        "Row: success",
        f"  {place}: exit 3",
        f"  {place}: tool_failed: exit 3",
    ]
