"""What an error answer of a provider means: its code, whether another attempt can help, and when."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.providers.addresses import without_query
from pipeline_engine.providers.base import Target
from pipeline_engine.providers.framing import clean_text, decode_json
from pipeline_engine.providers.retry_after import parse_retry_after

MAX_RAW_LENGTH = 2000  # characters
_MAX_MESSAGE_LENGTH = 500  # characters
_MIN_SECRET_LENGTH = 4  # characters: replacing "1" everywhere would hide the text and no secret

# Codes and types that name the cause, whatever the status; OpenAI's, Azure's, and those of the servers like them.
_CAUSES = {
    "content_filter": ErrorCode.CONTENT_FILTERED,
    "content_policy_violation": ErrorCode.CONTENT_FILTERED,
    "moderation_blocked": ErrorCode.CONTENT_FILTERED,
    "responsibleaipolicyviolation": ErrorCode.CONTENT_FILTERED,
    "insufficient_quota": ErrorCode.PROVIDER_QUOTA,
    "billing_hard_limit_reached": ErrorCode.PROVIDER_QUOTA,
    "billing_not_active": ErrorCode.PROVIDER_QUOTA,
    "model_not_found": ErrorCode.MODEL_NOT_FOUND,
    "deploymentnotfound": ErrorCode.MODEL_NOT_FOUND,
    "invalid_api_key": ErrorCode.PROVIDER_AUTH,
    "authentication_error": ErrorCode.PROVIDER_AUTH,
    "permission_error": ErrorCode.PROVIDER_AUTH,
    "rate_limit_exceeded": ErrorCode.PROVIDER_RATE_LIMITED,
    "rate_limit_error": ErrorCode.PROVIDER_RATE_LIMITED,
}
_STATUSES = {
    401: ErrorCode.PROVIDER_AUTH,
    402: ErrorCode.PROVIDER_QUOTA,
    403: ErrorCode.PROVIDER_AUTH,
    429: ErrorCode.PROVIDER_RATE_LIMITED,
}
_RETRYABLE_STATUSES = frozenset({408, 409, 425, 429})
# The fault is in the request: sent again, it fails again.
_FINAL_TYPES = frozenset({"invalid_request_error", "bad_request", "badrequesterror", "not_found_error"})
# llama.cpp says "Loading model", others that a model "is currently loading". Its type, unavailable_error, says nothing: a
# server that is merely busy has it too.
_LOADING = re.compile(r"\bloading\b", re.IGNORECASE)
# That it failed stands before the word, behind it ("loading of the model has failed"), or at the beginning, as "Error:"
# does; some servers put that before everything they say, also that a model "is loading".
_FAILED = r"\b(?:error|fail(?:ed|ure)?|problem|exception|crash(?:ed)?|abort(?:ed)?|out of memory)\b"
_LOADING_FAILED = re.compile(
    rf"{_FAILED}(?: occurred)?(?: \w+)? loading\b"
    rf"|\bloading\b.{{0,40}}?{_FAILED}"
    rf"|\A\W*{_FAILED}(?!.*\b(?:is|still|currently) loading\b)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """What the body of an error answer says, in whatever form the server writes it."""

    message: str = ""
    code: str = ""
    type: str = ""
    param: str = ""
    #: The HTTP status that the body names, where it comes with HTTP 200.
    status: int | None = None
    #: Whether the server's own error format was recognised, and not just some text.
    known_format: bool = False


class AnsweredError(ProviderError):
    """A ProviderError made from the server's own words, which are kept."""

    def __init__(self, *args: Any, info: ErrorInfo, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.info = info


def error_info(value: Any) -> ErrorInfo:
    """The parts of a decoded error body: OpenAI's object, Ollama's text, FastAPI's `detail`, or a bare message."""
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return ErrorInfo()
    error = value.get("error")
    if isinstance(error, str):
        return ErrorInfo(message=clean_text(error), code=_text(value.get("code")), known_format=True)
    if isinstance(error, dict):
        inner = error.get("innererror")
        code = _text(error.get("code"))
        if not code and isinstance(inner, dict):
            code = _text(inner.get("code"))
        return ErrorInfo(
            message=_text(error.get("message")),
            code=code,
            type=_text(error.get("type")),
            param=_text(error.get("param")),
            status=_status(error.get("code")) or _status(error.get("status")),
            known_format=True,
        )
    detail = value.get("detail")
    if isinstance(detail, list) and detail and isinstance(detail[0], dict):
        place = detail[0].get("loc")
        param = _text(place[-1]) if isinstance(place, list) and place else ""
        return ErrorInfo(message=_text(detail[0].get("msg")), type=_text(detail[0].get("type")), param=param)
    return ErrorInfo(
        message=_text(detail) or _text(value.get("message")),
        code=_text(value.get("code")),
        type=_text(value.get("type")),
        param=_text(value.get("param")),
    )


def failure(target: Target, *, status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> AnsweredError:
    """The error for an answer whose status is not 2xx."""
    try:
        info = error_info(decode_json(body))
    except ValueError:
        info = ErrorInfo()
    raw = clean_text(body.decode(errors="replace"))
    if 300 <= status < 400:
        place = without_query(headers.get("location", "nowhere"))
        info = ErrorInfo(message=f"a redirect to {place}, which is not followed: set base_uri to the final address")
    pause = parse_retry_after(headers, status=status, now=now)
    return _classified(target, info, status=status, raw=raw, retry_after_s=pause)


def failure_inside(
    target: Target, value: Any, *, raw: bytes, headers: Mapping[str, str], now: datetime
) -> AnsweredError:
    """The error for an error object inside an answer with HTTP 200."""
    info = error_info(value)
    return _classified(
        target,
        info,
        status=info.status,
        raw=clean_text(raw.decode(errors="replace")),
        retry_after_s=parse_retry_after(headers, status=info.status, now=now),
    )


def redact(text: str, target: Target) -> str:
    """The text without the target's key and header values, which servers like to repeat in their errors."""
    secrets = [secret.reveal() for secret in (*target.headers.values(), *([target.api_key] if target.api_key else []))]
    words = [word for secret in secrets for word in (secret, *secret.split())]
    for word in sorted(set(words), key=len, reverse=True):
        if len(word) >= _MIN_SECRET_LENGTH:
            text = text.replace(word, "***")
    return text


def raw_detail(text: str, target: Target) -> str:
    """A provider's own text as `details.raw` may hold it."""
    return redact(text, target)[:MAX_RAW_LENGTH]


def _classified(
    target: Target, info: ErrorInfo, *, status: int | None, raw: str, retry_after_s: float | None
) -> AnsweredError:
    code = _code(info, status)
    retryable = _is_retryable(code, info, status)
    loading = status == 503 and _says_loading(info.message or raw)
    said = redact(info.message or raw.strip(), target)[:_MAX_MESSAGE_LENGTH] or "no reason given"
    answered = "reported an error" if status is None else f"answered {status}"
    details: dict[str, Any] = {"status": status, "provider_code": redact(info.code or info.type, target)}
    if raw:
        details["raw"] = raw_detail(raw, target)
    return AnsweredError(
        code,
        f"{without_query(target.base_uri)} {answered}: {said}",
        retryable=retryable,
        retry_after_s=retry_after_s if retryable else None,
        loading=loading,
        details={name: value for name, value in details.items() if value},
        info=info,
    )


def _says_loading(text: str) -> bool:
    """Whether the message, or a text that is no page of HTML, says that a model is being loaded."""
    is_page = text.lstrip().startswith("<")
    return not is_page and _LOADING.search(text) is not None and _LOADING_FAILED.search(text) is None


def _code(info: ErrorInfo, status: int | None) -> ErrorCode:
    for name in (info.code.lower(), info.type.lower()):
        if name in _CAUSES:
            return _CAUSES[name]
    if status == 404 and info.param == "model":
        return ErrorCode.MODEL_NOT_FOUND
    return _STATUSES.get(status or 0, ErrorCode.PROVIDER_ERROR)


def _is_retryable(code: ErrorCode, info: ErrorInfo, status: int | None) -> bool:
    if code is ErrorCode.PROVIDER_RATE_LIMITED:
        # One request that is larger than the limit of a minute is a 413 to some servers: it never fits.
        return status is None or status in _RETRYABLE_STATUSES or status >= 500
    if code is not ErrorCode.PROVIDER_ERROR:
        return False
    if status is None:
        # The server began to answer, so the request was fine: it failed on the way, unless it says otherwise.
        return not _FINAL_TYPES & {info.code.lower(), info.type.lower()}
    return status in _RETRYABLE_STATUSES or status >= 500


def _status(value: Any) -> int | None:
    text = str(value) if isinstance(value, int | str) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) == 3 and "400" <= text <= "599" else None


def _text(value: Any) -> str:
    return clean_text(value) if isinstance(value, str) else str(value) if isinstance(value, int) else ""
