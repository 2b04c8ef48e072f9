"""What error answers mean."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.provider_calls import target_of

from pipeline_engine.decoding import Secret
from pipeline_engine.errors import ErrorCode
from pipeline_engine.providers.failures import AnsweredError, failure, failure_inside

NOW = datetime(2026, 1, 15, tzinfo=UTC)


def answered(status: int, body: Any = None, *, headers: dict[str, str] | None = None, **settings: Any) -> AnsweredError:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    target = target_of("http://models.example/v1", **settings)
    return failure(target, status=status, headers=headers or {}, body=data, now=NOW)


def error(**fields: Any) -> dict[str, Any]:
    return {"error": {"message": "words", **fields}}


@pytest.mark.parametrize(
    ("status", "body", "code", "retryable"),
    [
        (400, error(), ErrorCode.PROVIDER_ERROR, False),
        (401, error(), ErrorCode.PROVIDER_AUTH, False),
        (403, b"<html>no</html>", ErrorCode.PROVIDER_AUTH, False),
        (402, error(), ErrorCode.PROVIDER_QUOTA, False),
        (404, error(code="404"), ErrorCode.PROVIDER_ERROR, False),
        (404, error(code="model_not_found"), ErrorCode.MODEL_NOT_FOUND, False),
        (404, error(type="NotFoundError", param="model", code=404), ErrorCode.MODEL_NOT_FOUND, False),
        (404, error(code="DeploymentNotFound"), ErrorCode.MODEL_NOT_FOUND, False),
        (404, {"detail": "Not Found"}, ErrorCode.PROVIDER_ERROR, False),
        (408, error(), ErrorCode.PROVIDER_ERROR, True),
        (409, error(), ErrorCode.PROVIDER_ERROR, True),
        (422, {"detail": [{"loc": ["body", "x"], "msg": "no"}]}, ErrorCode.PROVIDER_ERROR, False),
        (425, error(), ErrorCode.PROVIDER_ERROR, True),
        (413, error(code="rate_limit_exceeded", type="tokens"), ErrorCode.PROVIDER_RATE_LIMITED, False),
        (400, error(type="rate_limit_error"), ErrorCode.PROVIDER_RATE_LIMITED, False),
        (409, error(code="rate_limit_exceeded"), ErrorCode.PROVIDER_RATE_LIMITED, True),
        (503, error(code="rate_limit_exceeded"), ErrorCode.PROVIDER_RATE_LIMITED, True),
        (429, error(), ErrorCode.PROVIDER_RATE_LIMITED, True),
        (429, error(code="insufficient_quota"), ErrorCode.PROVIDER_QUOTA, False),
        (429, error(type="insufficient_quota"), ErrorCode.PROVIDER_QUOTA, False),
        (400, error(code="content_filter"), ErrorCode.CONTENT_FILTERED, False),
        (400, error(innererror={"code": "ResponsibleAIPolicyViolation"}), ErrorCode.CONTENT_FILTERED, False),
        (500, b"", ErrorCode.PROVIDER_ERROR, True),
        (502, b"<html>", ErrorCode.PROVIDER_ERROR, True),
        (529, error(type="overloaded_error"), ErrorCode.PROVIDER_ERROR, True),
    ],
)
def test_status_and_code_decide(status: int, body: Any, code: ErrorCode, retryable: bool) -> None:
    found = answered(status, body)
    assert (found.code, found.retryable) == (code, retryable)
    assert found.details["status"] == status
    assert str(found).startswith(f"http://models.example/v1 answered {status}: ")


@pytest.mark.parametrize("message", ["quota exceeded", "invalid api key", "model not found", "content filter"])
def test_wording_decides_nothing(message: str) -> None:
    assert answered(400, {"error": {"message": message}}).code is ErrorCode.PROVIDER_ERROR


@pytest.mark.parametrize(
    ("status", "body", "loading"),
    [
        (503, error(message="Loading model", type="unavailable_error", code=503), True),
        (503, {"error": "Model m is currently loading", "estimated_time": 20}, True),
        (503, b"model loading", True),
        (503, {"status": "loading model"}, True),
        (503, error(message="server busy"), False),
        (503, error(message="No slot is free", type="unavailable_error", code=503), False),
        (503, error(message="error downloading shard 3 from peer"), False),
        (503, error(message="Error while loading the model: out of memory"), False),
        (503, error(message="failed loading the model"), False),
        (503, error(message="Model loading failed: out of memory"), False),
        (503, error(message="Error: loading model failed"), False),
        (503, error(message="Error: loading model m.gguf"), False),
        (503, error(message="loading of the model has failed"), False),
        (503, error(message="Loading model m.gguf:\nerror 12"), False),
        (503, error(message="An error occurred while loading the model"), False),
        (503, error(message="Out of memory while loading the model"), False),
        (503, error(message="Error: the model is still loading"), True),
        (503, error(message="Loading model m; until that is done, which can take minutes, requests fail"), True),
        (503, b'<html><img src="busy.png" loading="lazy"></html>', False),
        (500, error(message="failed loading the model"), False),
    ],
)
def test_a_503_that_says_it_is_loading(status: int, body: Any, loading: bool) -> None:
    found = answered(status, body)
    assert (found.loading, found.retryable) == (loading, True)


@pytest.mark.parametrize(
    ("value", "code", "retryable"),
    [
        (error(code=401), ErrorCode.PROVIDER_AUTH, False),
        (error(code=429), ErrorCode.PROVIDER_RATE_LIMITED, True),
        (error(code="429"), ErrorCode.PROVIDER_RATE_LIMITED, True),
        (error(code="rate_limit_exceeded"), ErrorCode.PROVIDER_RATE_LIMITED, True),
        (error(code="0429" + "0" * 5000), ErrorCode.PROVIDER_ERROR, True),
        (error(code=502), ErrorCode.PROVIDER_ERROR, True),
        (error(code=400), ErrorCode.PROVIDER_ERROR, False),
        (error(code="server_error"), ErrorCode.PROVIDER_ERROR, True),
        (error(type="invalid_request_error"), ErrorCode.PROVIDER_ERROR, False),
        ({"error": "out of memory"}, ErrorCode.PROVIDER_ERROR, True),
    ],
)
def test_an_error_inside_an_answer_with_status_200(value: Any, code: ErrorCode, retryable: bool) -> None:
    found = failure_inside(target_of("http://h"), value, raw=b"{}", headers={}, now=NOW)
    assert (found.code, found.retryable) == (code, retryable)


def test_the_wait_that_the_server_asks_for_counts_only_where_a_retry_can_help() -> None:
    assert answered(429, error(), headers={"retry-after": "7"}).retry_after_s == 7
    assert answered(401, error(), headers={"retry-after": "7"}).retry_after_s is None
    usual = {"x-ratelimit-remaining-requests": "4999", "x-ratelimit-reset-requests": "6m0s"}
    assert answered(500, error(), headers=usual).retry_after_s is None


def test_a_redirect_names_its_aim_without_the_query() -> None:
    found = answered(307, b"", headers={"location": "https://other.example/v1?token=abc"})
    assert (found.code, found.retryable) == (ErrorCode.PROVIDER_ERROR, False)
    assert "https://other.example/v1" in str(found)
    assert "abc" not in str(found)


def test_no_secret_is_repeated() -> None:
    body = error(message="bad key sk-live-123 and org-9999", code="sk-live-123")
    target = target_of("http://h", api_key=Secret("sk-live-123"), headers={"X-Auth": Secret("Token org-9999")})
    found = failure(target, status=401, headers={}, body=json.dumps(body).encode(), now=NOW)
    shown = str(found) + json.dumps(found.details)
    assert "sk-live" not in shown
    assert "org-9999" not in shown
    assert "***" in shown


def test_raw_text_is_bounded_and_can_be_stored() -> None:
    found = answered(500, b"\xff" + b"x" * 10_000)
    assert len(found.details["raw"]) == 2000
    assert found.details["raw"].startswith("\ufffdx")
