"""The one table from error codes to HTTP statuses, and error answers."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline_engine.api.calls import Answer, json_answer
from pipeline_engine.errors import InvalidRequestError, PipelineEngineError, Problem

STATUSES = {
    "invalid_request": 400,
    "unknown_pipeline": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "gone": 410,
    "payload_too_large": 413,
    "unsupported_media_type": 415,
    "too_many_requests": 429,
    "internal": 500,
    "unavailable": 503,
    "store_full": 507,
}

CODES = {status: code for code, status in reversed(STATUSES.items())}

RETRY_AFTER_S = 1  # a place in the queue may be free as soon as a job ends
MAX_PROBLEMS = 50  # that one answer lists: a body may hold a million


def error_answer(code: str, message: str, *, headers: Mapping[str, str] | None = None, **details: object) -> Answer:
    error = {"code": code, "message": message, "details": details}
    return json_answer({"error": error}, status=STATUSES[code], headers=headers)


def answer_for(error: PipelineEngineError) -> Answer:
    """The answer that tells a client of an error of the engine."""
    if isinstance(error, InvalidRequestError) and len(error.problems) > MAX_PROBLEMS:
        more = Problem("", f"and {len(error.problems) - MAX_PROBLEMS} more problems")
        error = InvalidRequestError([*error.problems[:MAX_PROBLEMS], more], source=error.source)
    code = error.code if error.code in STATUSES else "internal"
    headers = {"Retry-After": str(RETRY_AFTER_S)} if code == "too_many_requests" else {}
    body = {"error": {"code": code, "message": error.message, "details": error.details}}
    return json_answer(body, status=STATUSES[code], headers=headers)


def answer_for_status(status: int, *, allow: str | None = None) -> Answer:
    """The answer for what the web framework refuses: no such path, a wrong method, too large a body."""
    if status == 404:
        return error_answer("not_found", "there is nothing at this address")
    if status == 405:
        headers = {"Allow": allow} if allow else {}
        return error_answer("method_not_allowed", f"allowed here: {allow}", headers=headers)
    if status == 413:
        return error_answer("payload_too_large", "the body is too large (limits.max_body_bytes)")
    code = CODES.get(status, "invalid_request" if 400 <= status < 500 else "internal")
    words = "internal error" if code == "internal" else "the request cannot be understood"
    return error_answer(code, words)
