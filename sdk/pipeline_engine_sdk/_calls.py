"""Each call of the API as a value: what is sent, and how its answer is read."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote

import msgspec

from ._errors import ApiError, InvalidRequest, ProtocolError, class_for
from ._models import (
    EventPage,
    Health,
    Job,
    JobInput,
    JobPage,
    JobRequest,
    Metrics,
    Model,
    PipelineDef,
    ProviderProfile,
    RerunRequest,
    StepCheckpoint,
    Validation,
)

T = TypeVar("T")

Object: TypeAlias = Mapping[str, Any]

_BYTES = (bytes, bytearray, memoryview)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """A request, and the function that reads the body of its answer.

    `repeatable` tells whether it may be sent again when nobody knows whether the daemon has acted on it.
    """

    method: str
    path: str
    decode: Callable[[bytes], T]
    params: list[tuple[str, str]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    repeatable: bool = True
    job_id: str | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


# --- jobs


def create_job(request: JobRequest | Object, *, key: str | None, mode: str = "async") -> Call[Job]:
    return Call(
        method="POST",
        path="/v1/jobs",
        decode=_job,
        headers=_key_header(key),
        # The mode is that of the call, whatever the request says: it decides how the answer is read.
        body=_encode({**_object(request), "mode": mode}),
    )


def submit_and_stream(request: JobRequest | Object, *, key: str | None) -> Call[None]:
    call = create_job(request, key=key)
    return _stream(method="POST", path=call.path, body=call.body, headers=call.headers, params=[("stream", "true")])


def follow_job(job_id: str, *, after_seq: int) -> Call[None]:
    return _stream(
        method="GET", path=_job_path(job_id, "/stream"), params=[("after_seq", str(after_seq))], job_id=job_id
    )


def _stream(*, headers: Mapping[str, str] | None = None, **rest: Any) -> Call[None]:
    return Call(decode=_nothing, headers={**(headers or {}), "Accept": "application/x-ndjson"}, **rest)


def get_events(job_id: str, *, after_seq: int, limit: int | None = None, wait_s: float = 0.0) -> Call[EventPage]:
    params = [("after_seq", str(after_seq)), ("wait_s", f"{wait_s:.3f}")]
    if limit is not None:
        params.append(("limit", str(limit)))
    return Call(
        method="GET", path=_job_path(job_id, "/events"), params=params, decode=_reader(EventPage), job_id=job_id
    )


def get_job(job_id: str, *, include_chunks: bool = False) -> Call[Job]:
    params = [("include", "chunks")] if include_chunks else []
    return Call(method="GET", path=_job_path(job_id), params=params, decode=_job, job_id=job_id)


def list_jobs(
    *,
    status: str | None,
    pipeline_type: str | None,
    labels: Mapping[str, str] | None,
    limit: int | None,
    cursor: str | None,
) -> Call[JobPage]:
    given = {"status": status, "pipeline_type": pipeline_type, "limit": limit, "cursor": cursor}
    params = [(name, str(value)) for name, value in given.items() if value is not None]
    params += [("label", f"{name}:{value}") for name, value in (labels or {}).items()]
    return Call(method="GET", path="/v1/jobs", params=params, decode=_reader(JobPage))


def cancel_job(job_id: str, *, reason: str) -> Call[Job]:
    body = _encode({"reason": reason} if reason else {})
    return Call(method="POST", path=_job_path(job_id, "/cancel"), body=body, decode=_job, job_id=job_id)


def rerun_job(
    job_id: str,
    *,
    from_step_id: str | None,
    reuse_upstream: bool,
    override_input: JobInput | Object | None,
    pipeline: str,
    key: str | None,
) -> Call[Job]:
    body = RerunRequest(from_step_id=from_step_id, reuse_upstream=reuse_upstream, pipeline=pipeline).to_dict()
    if override_input is not None:
        body["override_input"] = _object(override_input)
    path = _job_path(job_id, "/rerun")
    return Call(method="POST", path=path, body=_encode(body), headers=_key_header(key), decode=_job, job_id=job_id)


def delete_job(job_id: str) -> Call[None]:
    # Sent twice, the second answer would be "not found".
    return Call(method="DELETE", path=_job_path(job_id), decode=_nothing, repeatable=False, job_id=job_id)


def list_checkpoints(job_id: str) -> Call[list[StepCheckpoint]]:
    decode = _reader_of("checkpoints", list[StepCheckpoint])
    return Call(method="GET", path=_job_path(job_id, "/checkpoints"), decode=decode, job_id=job_id)


def get_artifact(job_id: str, artifact_id: str) -> Call[bytes]:
    path = _job_path(job_id, f"/artifacts/{quote(artifact_id, safe='')}")
    return Call(method="GET", path=path, decode=_raw, headers={"Accept": "*/*"}, job_id=job_id)


# --- configuration, health


def list_pipelines() -> Call[list[PipelineDef]]:
    return Call(method="GET", path="/v1/config/pipelines", decode=_reader_of("pipelines", list[PipelineDef]))


def list_broken_files() -> Call[list[str]]:
    return Call(method="GET", path="/v1/config/pipelines", decode=_broken_files)


def get_pipeline(pipeline_type: str) -> Call[PipelineDef]:
    return Call(method="GET", path=_pipeline_path(pipeline_type), decode=_reader(PipelineDef))


def put_pipeline(definition: PipelineDef | Object) -> Call[PipelineDef]:
    body = _object(definition)
    path = _pipeline_path(str(body.get("type") or ""))
    return Call(method="PUT", path=path, body=_encode(body), decode=_reader(PipelineDef))


def delete_pipeline(pipeline_type: str) -> Call[None]:
    return Call(method="DELETE", path=_pipeline_path(pipeline_type), decode=_nothing, repeatable=False)


def validate_pipeline(definition: PipelineDef | Object) -> Call[Validation]:
    body = _encode(_object(definition))
    return Call(method="POST", path="/v1/config/pipelines/validate", body=body, decode=_reader(Validation))


def list_providers() -> Call[list[ProviderProfile]]:
    return Call(method="GET", path="/v1/config/providers", decode=_reader_of("providers", list[ProviderProfile]))


def upsert_provider_profile(profile: ProviderProfile | Object) -> Call[ProviderProfile]:
    # What an answer says about the key is no part of a profile that is sent.
    body = {name: value for name, value in _object(profile).items() if name != "api_key_set"}
    return Call(method="POST", path="/v1/config/providers", body=_encode(body), decode=_reader(ProviderProfile))


def delete_provider_profile(profile_id: str) -> Call[None]:
    path = f"/v1/config/providers/{quote(profile_id, safe='')}"
    return Call(method="DELETE", path=path, decode=_nothing, repeatable=False)


def update_engine_config(*, log_level: str | None) -> Call[dict[str, Any]]:
    body = _encode({} if log_level is None else {"log_level": log_level})
    return Call(method="POST", path="/v1/config/engine", body=body, decode=_reader(dict[str, Any]))


def get_metrics() -> Call[Metrics]:
    return Call(method="GET", path="/v1/metrics", decode=_reader(Metrics))


def health() -> Call[Health]:
    return Call(method="GET", path="/health", decode=_reader(Health))


# --- what goes out


def new_key() -> str:
    """A fresh idempotency key: with it a submission can be repeated until it is known to have arrived."""
    return uuid.uuid4().hex


def _key_header(key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": key or new_key()}


def _job_path(job_id: str, rest: str = "") -> str:
    return f"/v1/jobs/{_segment(job_id, 'job id')}{rest}"


def _pipeline_path(pipeline_type: str) -> str:
    return f"/v1/config/pipelines/{_segment(pipeline_type, 'pipeline type')}"


def _segment(text: str, what: str) -> str:
    # An empty one would be another call: DELETE /v1/jobs/ is not for one job.
    if not text:
        raise InvalidRequest(f"the {what} is empty")
    return quote(text, safe="")


def _object(value: Model | Object) -> dict[str, Any]:
    if isinstance(value, Model):
        fields: dict[str, Any] = msgspec.to_builtins(value, builtin_types=_BYTES)
        return fields
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"expected a dict or a typed model, not {value!r}")
    return dict(value)


def _encode(value: Object) -> bytes:
    """The value as JSON; typed models may stand anywhere in it."""
    try:
        path = _place_of_bytes(value)
        if path is None:
            return msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidRequest(f"the request cannot be written as JSON: {exc}") from exc
    words = f"{path}: JSON has no bytes; those of a source go into content_base64: base64.b64encode(data).decode()"
    raise InvalidRequest(words, details={"path": path})


def _place_of_bytes(value: object, path: str = "") -> str | None:
    """Where bytes stand in the value. The encoder would make a text of them that nobody asked for."""
    if isinstance(value, _BYTES):
        return path
    if isinstance(value, Model):
        value = msgspec.structs.asdict(value)
    parts: Iterable[tuple[str, object]] = ()
    if isinstance(value, Mapping):
        parts = ((f"{path}.{name}" if path else str(name), part) for name, part in value.items())
    elif isinstance(value, list | tuple):
        parts = ((f"{path}[{index}]", part) for index, part in enumerate(value))
    return next((place for where, part in parts if (place := _place_of_bytes(part, where)) is not None), None)


# --- what comes back


def _reader(type_: type[T]) -> Callable[[bytes], T]:
    return msgspec.json.Decoder(type_).decode


def _reader_of(key: str, type_: type[T]) -> Callable[[bytes], T]:
    """Reads the value under the only key of an object."""
    whole = msgspec.defstruct("Answer", [(key, type_)])

    def read(content: bytes) -> T:
        value: T = getattr(msgspec.json.decode(content, type=whole), key)
        return value

    return read


_job = _reader_of("job", Job)


def _nothing(_: bytes) -> None:
    return None


def _raw(content: bytes) -> bytes:
    return content


def read_answer(call: Call[T], content: bytes) -> T:
    """What the call gives. Raises ProtocolError."""
    try:
        return call.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        words = (
            f"the answer to {call} is not what the API promises ({exc}); is there a Pipeline Engine at that address?"
        )
        raise ProtocolError(words, job_id=call.job_id) from exc


class _BrokenFiles(msgspec.Struct):
    broken_files: list[str] = []  # daemons up to 0.3.0 tell none


def _broken_files(content: bytes) -> list[str]:
    return msgspec.json.decode(content, type=_BrokenFiles).broken_files


class _ErrorBody(msgspec.Struct):
    code: str
    message: str
    details: dict[str, Any] = {}


class _ErrorAnswer(msgspec.Struct):
    error: _ErrorBody


#: What servers of other kinds say to a call that they do not know.
UNKNOWN_CALL = {404, 405, 501}


def read_error(call: Call[Any], status: int, content: bytes, *, retry_after: float | None) -> ApiError | ProtocolError:
    """The error that an answer with that status tells."""
    if not 400 <= status <= 599:
        return ProtocolError(f"{call} was answered with the status {status}", status=status, job_id=call.job_id)
    try:
        body = msgspec.json.decode(content, type=_ErrorAnswer).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Not the daemon's own words: a proxy before it, or a server of another kind.
        words = f"{call} was answered with the status {status}"
        if status in UNKNOWN_CALL:
            words += ", and not by a Pipeline Engine; is there one at that address?"
        class_ = class_for(None, status)
        return class_(words, status=status, retry_after=retry_after, job_id=call.job_id)
    job_id = call.job_id or body.details.get("job_id")
    return class_for(body.code, status)(
        body.message, code=body.code, details=body.details, status=status, retry_after=retry_after, job_id=job_id
    )
