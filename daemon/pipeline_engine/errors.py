"""The error classes of the engine, each with its stable code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pipeline_engine.suggestions import known_names

MAX_BROKEN_FILES = 3  # that a message about an unknown pipeline names


class ErrorCode(StrEnum):
    """Why a job, a step or an item failed: the codes of a JobError."""

    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    BUDGET_EXCEEDED = "budget_exceeded"
    TEMPLATE_ERROR = "template_error"
    MISSING_DEPENDENCY = "missing_dependency"
    TOOL_FAILED = "tool_failed"
    OUTPUT_INVALID = "output_invalid"
    OUTPUT_TRUNCATED = "output_truncated"
    CONTENT_FILTERED = "content_filtered"
    MODEL_NOT_FOUND = "model_not_found"
    PROVIDER_AUTH = "provider_auth"
    PROVIDER_QUOTA = "provider_quota"
    PROVIDER_RATE_LIMITED = "provider_rate_limited"
    PROVIDER_UNREACHABLE = "provider_unreachable"
    PROVIDER_TRUNCATED = "provider_truncated"
    PROVIDER_PROTOCOL = "provider_protocol"
    PROVIDER_EMPTY = "provider_empty"
    PROVIDER_ERROR = "provider_error"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a document: where (`steps[2].kind`), what, and the line where known."""

    path: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        place = "" if self.line is None else f"line {self.line}"
        return ": ".join(part for part in (place, self.path, self.message) if part)


class PipelineEngineError(Exception):
    """The base of all errors of the engine; `code` is stable, `message` is for people, `details` for programs."""

    code: str = "internal"

    def __init__(self, message: str, *, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = dict(details or {})


class InvalidRequestError(PipelineEngineError):
    """A request or a document that cannot be used; carries every problem that was found."""

    code = "invalid_request"

    def __init__(self, problems: Iterable[Problem], *, source: str | None = None) -> None:
        self.problems = tuple(problems)
        self.source = source
        prefix = f"{source}: " if source else ""
        message = "\n".join(f"{prefix}{problem}" for problem in self.problems)
        details: dict[str, Any] = {
            "problems": [{"path": problem.path, "message": problem.message} for problem in self.problems]
        }
        if self.problems and self.problems[0].path:
            details["path"] = self.problems[0].path
        super().__init__(message, details=details)


class UnknownPipelineError(PipelineEngineError):
    """No pipeline of that type is defined; `details.known` lists those that are."""

    code = "unknown_pipeline"

    def __init__(self, pipeline_type: str, known: Iterable[str], *, broken_files: Sequence[str] = ()) -> None:
        names = sorted(known)
        message = f"there is no pipeline {pipeline_type!r}; {known_names(pipeline_type, names)}"
        if broken_files:
            # Perhaps one of them would define it.
            count = "1 definition file" if len(broken_files) == 1 else f"{len(broken_files)} definition files"
            message += f"; {count} cannot be used: {'; '.join(broken_files[:MAX_BROKEN_FILES])}"
        super().__init__(message, details={"known": names})


class NotFoundError(PipelineEngineError):
    """The thing that was asked for does not exist (any more)."""

    code = "not_found"


class ConflictError(PipelineEngineError):
    """The call is well-formed, but the state of the thing forbids it."""

    code = "conflict"


class ForbiddenError(PipelineEngineError):
    """The call asks for what nobody may do this way."""

    code = "forbidden"


class GoneError(PipelineEngineError):
    """What was asked for was here once: events that have been pruned, or the job of a key, which has been deleted."""

    code = "gone"


class QueueFullError(PipelineEngineError):
    """As many jobs wait as `limits.max_queued_jobs` allows."""

    code = "too_many_requests"


class UnavailableError(PipelineEngineError):
    """New work is not accepted now: starting, draining, or the store cannot be written."""

    code = "unavailable"


class StoreError(PipelineEngineError):
    """The store could not do what was asked of it; the write may succeed later."""

    code = "unavailable"


class StoreFullError(StoreError):
    """The store may not grow (`limits.max_store_bytes`, or the disk is full)."""

    code = "store_full"


class DataDirectoryInUseError(StoreError):
    """Another process holds the data directory."""


class StepError(PipelineEngineError):
    """Something that fails an item, and through it perhaps the step and the job.

    `details` holds what helps to act on it, never a secret: `status`, `provider_code`, `exit_code`, `stderr`, `raw`.
    """

    def __init__(self, code: ErrorCode, message: str, *, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, details=details)
        self.code: ErrorCode = code


class TemplateError(StepError):
    """A template or an expression that could not be rendered: names the line and, where known, the name."""

    def __init__(self, message: str, *, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(ErrorCode.TEMPLATE_ERROR, message, details=details)


class ProviderError(StepError):
    """A provider call that failed.

    `retryable` says whether another attempt can help; `retry_after_s` is the pause that the provider asked for, in
    seconds; `loading` that the server is loading the model and costs no attempt while it does.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        retryable: bool = False,
        retry_after_s: float | None = None,
        loading: bool = False,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(code, message, details=details)
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.loading = loading
