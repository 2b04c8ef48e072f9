from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import pipeline_engine_sdk
from pipeline_engine_sdk import PipelineEngineError
from pipeline_engine_sdk._calls import get_job, read_error
from pipeline_engine_sdk._errors import class_for

CLASSES = [
    value
    for value in vars(pipeline_engine_sdk).values()
    if isinstance(value, type) and issubclass(value, PipelineEngineError)
]


def through_pickle(error: Exception) -> Any:
    return pickle.loads(pickle.dumps(error))


@pytest.mark.parametrize("again", [through_pickle, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("class_", CLASSES)
def test_an_error_survives_pickle_and_copy(class_: type[PipelineEngineError], again: Callable[[Any], Any]) -> None:
    error = class_("words", code="a_code", details={"path": "x"}, status=418, retry_after=1.5, job_id="job_1")
    same = again(error)
    assert type(same) is class_
    assert str(same) == str(error) == "words"
    assert vars(same) == vars(error)


def test_there_are_errors_for_all_that_the_daemon_refuses() -> None:
    names = {class_.__name__ for class_ in CLASSES}
    assert {"NotFound", "InvalidRequest", "Unauthorized", "Forbidden", "Conflict", "Gone", "RateLimited"} <= names


@pytest.mark.parametrize(
    ("code", "status", "name"),
    [
        ("not_found", 404, "NotFound"),
        ("unknown_pipeline", 400, "UnknownPipeline"),
        ("invented_later", 409, "Conflict"),
        ("invented_later", 418, "ApiError"),
        (None, 502, "Unavailable"),
        ("store_full", None, "StoreFull"),
    ],
)
def test_the_code_chooses_the_class_and_else_the_status(code: str | None, status: int | None, name: str) -> None:
    assert class_for(code, status).__name__ == name


@pytest.mark.parametrize(
    ("status", "body", "is_asked"),
    [
        (404, b"<html>no</html>", True),
        (501, b"", True),
        (502, b"<html>a proxy</html>", False),
        (404, b'{"error": {"code": "not_found", "message": "there is no job"}}', False),
    ],
)
def test_a_server_that_does_not_know_the_call_is_asked_to_be_the_right_one(
    status: int, body: bytes, *, is_asked: bool
) -> None:
    error = read_error(get_job("job_1"), status, body, retry_after=None)
    assert error.message.endswith("not by a Pipeline Engine; is there one at that address?") == is_asked
