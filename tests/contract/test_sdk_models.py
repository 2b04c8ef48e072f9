"""The SDK's types read what the daemon writes, and lose nothing of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline_engine import models
from pipeline_engine.api import wire
from pipeline_engine_sdk import _models as sdk
from pipeline_engine_sdk._calls import get_job, read_error

GOLDEN = Path(__file__).parent / "golden"
STREAMS = ["succeeded.ndjson", "failed.ndjson", "cancelled.ndjson", "rerun.ndjson"]
JOB_EVENTS = ("job_queued", "job_started", "job_status", "job_completed", "job_failed", "job_cancelled")
STEP_EVENTS = ("step_started", "step_completed", "step_failed", "step_cancelled", "step_skipped")


def golden(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def lost(given: Any, kept: Any) -> list[str]:
    """The paths of what the document says and the value does not; a default that is left out again is not lost."""
    if isinstance(given, dict) and isinstance(kept, dict):
        return [f"{key}.{path}" for key in given for path in lost(given[key], kept.get(key))]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return [f"{index}.{path}" for index, pair in enumerate(zip(given, kept, strict=True)) for path in lost(*pair)]
    return [] if given == kept or (kept is None and not given) else [""]


@pytest.mark.parametrize(
    ("name", "key", "type_"),
    [
        ("job.json", "job", sdk.Job),
        ("cancelled.json", "job", sdk.Job),
        ("jobs.json", None, sdk.JobPage),
        ("checkpoints.json", "checkpoints", list[sdk.StepCheckpoint]),
        ("profile.json", None, sdk.ProviderProfile),
        ("metrics.json", None, sdk.Metrics),
    ],
)
def test_documents_are_read_whole(name: str, key: str | None, type_: Any) -> None:
    document = golden(name)
    document = document if key is None else document[key]
    kept = json.loads(msgspec.json.encode(msgspec.convert(document, type_)))
    # The defaults that stand in every answer, though the SDK leaves them out.
    missing = [path for path in lost(document, kept) if not path.endswith(("mode.", "usage.prompt_tokens."))]
    assert missing == []


@pytest.mark.parametrize("name", STREAMS)
def test_events_and_what_they_hold_are_read(name: str) -> None:
    lines = (GOLDEN / name).read_text(encoding="utf-8").splitlines()
    events = [msgspec.json.decode(line, type=sdk.Event) for line in lines]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    jobs = [msgspec.convert(event.data, sdk.Job) for event in events if event.event in JOB_EVENTS]
    steps = [msgspec.convert(event.data, sdk.StepExecution) for event in events if event.event in STEP_EVENTS]
    items = [msgspec.convert(event.data, sdk.ResultItem) for event in events if event.event == "item_completed"]
    assert jobs[-1].is_final
    assert all(step.step_id for step in steps)
    assert all(item.data for item in items)


@pytest.mark.parametrize("name", ["invalid_request", "unknown_pipeline", "not_found"])
def test_errors_are_read(name: str) -> None:
    body = golden(f"error_{name}.json")["error"]
    error = read_error(get_job("job_1"), 400, json.dumps({"error": body}).encode(), retry_after=None)
    assert (error.code, error.message, error.details) == (name, body["message"], body["details"])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (models.Job, sdk.Job),
        (models.StepExecution, sdk.StepExecution),
        (models.ResultItem, sdk.ResultItem),
        (models.JobError, sdk.JobError),
        (models.StepCheckpoint, sdk.StepCheckpoint),
        (models.Source, sdk.Source),
        (models.JobInput, sdk.JobInput),
        (models.StepDef, sdk.StepDef),
        (models.PipelineDef, sdk.PipelineDef),
        (models.Prompt, sdk.Prompt),
        (models.RerunRequest, sdk.RerunRequest),
        (wire.ProviderView, sdk.ProviderProfile),
        (wire.Health, sdk.Health),
        (wire.Validation, sdk.Validation),
        (wire.ProviderMetrics, sdk.Metrics),
    ],
)
def test_no_field_of_the_daemon_is_missing(theirs: type[msgspec.Struct], ours: type[msgspec.Struct]) -> None:
    assert set(theirs.__struct_fields__) <= set(ours.__struct_fields__)


def test_a_request_has_all_fields_but_the_mode_which_the_call_decides() -> None:
    assert set(models.JobRequest.__struct_fields__) - set(sdk.JobRequest.__struct_fields__) == {"mode"}
