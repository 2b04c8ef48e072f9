"""The errors that the clients raise, each with what a caller can act on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PipelineEngineError(Exception):
    """The base of all errors of the SDK.

    `code` is stable and for programs, `message` for people, `details` holds what helps to act on it. `status` is the
    HTTP status, if the daemon answered; `retry_after` the pause in seconds that it asked for; `job_id` the job that
    the call was about, where that is known. Instances can be pickled and copied.
    """

    code: str = "error"

    # Everything but the message is optional: pickle and copy build an exception from its args and then set the rest.
    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        details: Mapping[str, Any] | None = None,
        status: int | None = None,
        retry_after: float | None = None,
        job_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        self.details: dict[str, Any] = dict(details or {})
        self.status = status
        self.retry_after = retry_after
        self.job_id = job_id


class ConnectionFailed(PipelineEngineError):
    """The daemon could not be reached, or the connection broke; the message names the address."""

    code = "connection_failed"


class ProtocolError(PipelineEngineError):
    """The answer is not what the API promises; perhaps it is not a daemon that answers at this address."""

    code = "protocol_error"


class DeadlineExceeded(PipelineEngineError):
    """The job had not finished within the `timeout_s` of the call; it goes on."""

    code = "deadline_exceeded"


class ClientClosed(PipelineEngineError):
    """A client was used after it was closed."""

    code = "client_closed"


class WrongEventLoop(PipelineEngineError):
    """A client was used in another event loop than the one that it was first used in."""

    code = "wrong_event_loop"


class ApiError(PipelineEngineError):
    """The daemon refused the call; the classes below say why."""

    code = "internal"


class InvalidRequest(ApiError):
    """The request is malformed, or a field of it is wrong: `details["path"]` and `details["problems"]`."""

    code = "invalid_request"


class UnknownPipeline(InvalidRequest):
    """There is no pipeline of that type; `details["known"]` lists those that there are."""

    code = "unknown_pipeline"


class Unauthorized(ApiError):
    """The API key is missing or wrong."""

    code = "unauthorized"


class Forbidden(ApiError):
    """The call asks for what nobody may do this way."""

    code = "forbidden"


class NotFound(ApiError):
    """The thing that was asked for does not exist (any more)."""

    code = "not_found"


class Conflict(ApiError):
    """The state of the thing forbids the call: a running job cannot be deleted, a file's definition not be changed."""

    code = "conflict"


class Gone(ApiError):
    """The events that were asked for have been pruned."""

    code = "gone"


class PayloadTooLarge(ApiError):
    """The body is larger than the daemon's `limits.max_body_bytes`."""

    code = "payload_too_large"


class RateLimited(ApiError):
    """The daemon's queue is full; `retry_after` tells when to try again, in seconds."""

    code = "too_many_requests"


class Unavailable(ApiError):
    """The daemon starts, stops, or cannot write its store."""

    code = "unavailable"


class StoreFull(ApiError):
    """The daemon's store may not grow; finished jobs can be deleted."""

    code = "store_full"


_CLASSES: tuple[type[ApiError], ...] = (
    InvalidRequest,
    UnknownPipeline,
    Unauthorized,
    Forbidden,
    NotFound,
    Conflict,
    Gone,
    PayloadTooLarge,
    RateLimited,
    Unavailable,
    StoreFull,
)
_BY_CODE = {one.code: one for one in _CLASSES}
_BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    413: PayloadTooLarge,
    429: RateLimited,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
    507: StoreFull,
}


def class_for(code: str | None, status: int | None) -> type[ApiError]:
    """The class for an error's code, or else for its HTTP status; ApiError for what this version does not know."""
    by_status = _BY_STATUS.get(status, ApiError) if status is not None else ApiError
    return _BY_CODE.get(code, by_status) if code is not None else by_status
