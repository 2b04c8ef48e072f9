from __future__ import annotations

import re
from typing import Any

from pipeline_engine.mcp_server.running import _Progress
from pipeline_engine_sdk import Event

Told = tuple[str, dict[str, Any]]


def progress_after(*events: Told) -> _Progress:
    progress = _Progress()
    for name, data in events:
        progress.take(Event(seq=1, event=name, job_id="job_1", ts="", data=data))
    return progress


STARTED: Told = ("job_started", {"step_executions": [{"step_id": "a", "name": "Read"}, {"step_id": "b"}]})


def chunk(index: int, content: str) -> Told:
    return "provider_chunk", {"step_id": "b", "attempt": 1, "index": index, "content": content}


def test_a_queued_job_has_made_no_progress() -> None:
    progress = progress_after()
    assert (progress.value, progress.total, progress.message) == (0, None, "queued")


def test_steps_count_when_they_have_ended_in_whatever_way() -> None:
    progress = progress_after(STARTED, ("step_completed", {"step_id": "a"}), ("step_skipped", {"step_id": "b"}))
    assert (progress.value, progress.total, progress.message) == (2, 2, "2 of 2 steps done")


def test_a_running_step_counts_by_its_items() -> None:
    running = ("step_progress", {"step_id": "a", "done": 3, "total": 4})
    progress = progress_after(STARTED, ("step_started", {"step_id": "a"}), running)
    assert (progress.value, progress.message) == (0.75, "0 of 2 steps done; Read: 3/4 items")


def test_a_step_of_one_call_counts_by_its_chunks_and_shows_the_newest_text() -> None:
    begun: list[Told] = [STARTED, ("step_started", {"step_id": "b"})]
    few = progress_after(*begun, chunk(0, "Once\nupon "))
    more = progress_after(*begun, chunk(0, "Once\nupon "), *(chunk(index, "a time ") for index in range(1, 300)))
    assert 0 < few.value < more.value < 1
    assert few.message == "0 of 2 steps done; b: 1 chunks … Once upon"
    assert re.fullmatch(r"0 of 2 steps done; b: 300 chunks … [a-z ]{50,60}", more.message)


def test_a_new_attempt_begins_its_text_anew_and_takes_no_progress_back() -> None:
    begun: list[Told] = [STARTED, ("step_started", {"step_id": "b"}), chunk(0, "wrong "), chunk(1, "text")]
    before = progress_after(*begun).value
    progress = progress_after(*begun, chunk(0, "right"))
    assert progress.message.endswith("… right")
    assert progress.value >= before


def test_a_model_that_is_loading_is_told_of() -> None:
    loading = ("step_progress", {"step_id": "b", "done": 0, "total": 0, "note": "the model is loading"})
    assert progress_after(STARTED, ("step_started", {"step_id": "b"}), loading).message.endswith(
        "b: the model is loading"
    )
