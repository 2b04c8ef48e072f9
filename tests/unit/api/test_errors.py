"""Which status each error has, and what its answer tells."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline_engine.api.calls import Answer
from pipeline_engine.api.errors import MAX_PROBLEMS, answer_for, answer_for_status
from pipeline_engine.errors import (
    ConflictError,
    ErrorCode,
    ForbiddenError,
    GoneError,
    InvalidRequestError,
    NotFoundError,
    PipelineEngineError,
    Problem,
    QueueFullError,
    StepError,
    StoreError,
    StoreFullError,
    UnavailableError,
    UnknownPipelineError,
)


def error_in(answer: Answer) -> Any:
    assert isinstance(answer.body, bytes)
    body = json.loads(answer.body)
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "details"}
    return body["error"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidRequestError([Problem("a.b", "is wrong")]), 400, "invalid_request"),
        (UnknownPipelineError("x", ["y"]), 400, "unknown_pipeline"),
        (ForbiddenError("no"), 403, "forbidden"),
        (NotFoundError("no"), 404, "not_found"),
        (ConflictError("no"), 409, "conflict"),
        (GoneError("no"), 410, "gone"),
        (QueueFullError("no"), 429, "too_many_requests"),
        (UnavailableError("no"), 503, "unavailable"),
        (StoreError("no"), 503, "unavailable"),
        (StoreFullError("no"), 507, "store_full"),
        (StepError(ErrorCode.TIMEOUT, "no"), 500, "internal"),
        (PipelineEngineError("no"), 500, "internal"),
    ],
)
def test_each_error_has_its_status(error: PipelineEngineError, status: int, code: str) -> None:
    answer = answer_for(error)
    assert (answer.status, error_in(answer)["code"]) == (status, code)
    assert ("Retry-After" in answer.headers) is (status == 429)


def test_a_million_problems_make_a_short_answer() -> None:
    problems = [Problem(f"labels.k{n}", "is wrong") for n in range(100_000)]
    error = error_in(answer_for(InvalidRequestError(problems)))
    assert len(error["details"]["problems"]) == MAX_PROBLEMS + 1
    assert error["message"].endswith("and 99950 more problems")
    assert error["details"]["path"] == "labels.k0"


@pytest.mark.parametrize(
    ("status", "shown", "code"),
    [
        (400, 400, "invalid_request"),
        (404, 404, "not_found"),
        (405, 405, "method_not_allowed"),
        (408, 400, "invalid_request"),
        (413, 413, "payload_too_large"),
        (415, 415, "unsupported_media_type"),
        (500, 500, "internal"),
        (502, 500, "internal"),
    ],
)
def test_what_the_framework_refuses_is_json_too(status: int, shown: int, code: str) -> None:
    answer = answer_for_status(status, allow="GET")
    assert (answer.status, error_in(answer)["code"]) == (shown, code)
