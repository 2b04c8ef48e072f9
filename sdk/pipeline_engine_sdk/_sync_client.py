"""The client for threads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from time import sleep
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from . import _calls
from ._calls import Call, Object, read_answer
from ._client import GIVE_UP_AFTER, MAX_RETRIES, TIMEOUT, ClientCore, JobPages, PartFile
from ._following import BETWEEN_PAGES, Following, Waiting
from ._models import (
    Event,
    EventPage,
    Health,
    Job,
    JobInput,
    JobPage,
    JobRequest,
    Metrics,
    PipelineDef,
    ProviderProfile,
    StepCheckpoint,
    Validation,
)
from ._retries import Attempts, connection_failed
from ._settings import SILENCE_TIMEOUT, open_transport

T = TypeVar("T")


class PipelineEngineClient:
    """A client of a daemon, for code without an event loop.

        with PipelineEngineClient() as client:
            job = client.run_job({"pipeline_type": "notes.v1", "input": {"sources": [{"content": "..."}]}})
            for event in client.follow_job(job.id):
                print(event.seq, event.event)

    The daemon is that of `base_url` (`http://HOST:PORT`, `unix:/path`) or of the unix socket `uds`; without either of
    them that of PIPELINE_ENGINE_URL, with the key of PIPELINE_ENGINE_API_KEY, or http://127.0.0.1:8085. A daemon on
    this machine is always reached directly, any other one through the proxy that the environment names.

    Calls that fail for want of a connection, or with 429, 502, 503 or 504, are made again up to `max_retries` times
    where that is safe: submissions carry an idempotency key, so they become one job. `timeout_s` is how long an
    attempt waits for the next piece of its answer, in seconds; None is for ever. A method's own `timeout_s` takes its
    place.

    All methods raise PipelineEngineError: ConnectionFailed, ProtocolError, or an ApiError such as NotFound. Requests are
    dicts or the typed models. Threads may share a client, but not a stream. `transport` takes the place of the network,
    for tests.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        uds: str | os.PathLike[str] | None = None,
        api_key: str | None = None,
        timeout_s: float | None = TIMEOUT,
        max_retries: int = MAX_RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._core = ClientCore(base_url, uds=uds, api_key=api_key, max_retries=max_retries)
        self._timeout_s = timeout_s
        self._streams: set[EventStream] = set()
        transport = transport or open_transport(self._core.target)
        self._http = httpx.Client(transport=transport, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections, also those of streams that were not read to their end."""
        try:
            for stream in list(self._streams):
                stream.close()
        finally:
            self._http.close()

    # --- jobs

    def create_job(
        self, request: JobRequest | Object, *, idempotency_key: str | None = None, timeout_s: float | None = None
    ) -> Job:
        """The job, queued. Submitting again with the same key gives the same job, for 24 hours.

        Without a key each call makes one of its own. Raises UnknownPipeline, InvalidRequest, RateLimited, Unavailable,
        StoreFull; Conflict when the key came with another request.
        """
        return self._call(_calls.create_job(request, key=idempotency_key), timeout_s=timeout_s)

    def run_job(
        self,
        request: JobRequest | Object,
        *,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
        give_up_after_s: float | None = GIVE_UP_AFTER,
    ) -> Job:
        """The finished job; look at its `status`. It goes on when the caller leaves, and when the daemon restarts.

        Waits as long as it takes, unless `timeout_s` bounds it (then ConnectionFailed); broken connections are made
        again until the daemon has been out of reach for `give_up_after_s` seconds.
        """
        call = _calls.create_job(request, key=idempotency_key, mode="sync")
        attempts = self._core.attempts(call, give_up_after_s=give_up_after_s, is_long=timeout_s is None)
        return self._perform(call, attempts, timeout_s=timeout_s)

    def stream_job(
        self,
        request: JobRequest | Object,
        *,
        idempotency_key: str | None = None,
        give_up_after_s: float | None = GIVE_UP_AFTER,
    ) -> EventStream:
        """Submit a job and follow it: all its events, from job_queued to stream_finished, each once.

            for event in client.stream_job(request):
                if event.event == "provider_chunk":
                    print(event.data["content"], end="")

        As follow_job; leaving the loop does not cancel the job.
        """
        following = self._core.submitting(request, key=idempotency_key, give_up_after_s=give_up_after_s)
        return EventStream(self, following, give_up_after_s)

    def follow_job(
        self, job_id: str, *, after_seq: int = 0, give_up_after_s: float | None = GIVE_UP_AFTER
    ) -> EventStream:
        """The events of a job with a greater seq than `after_seq`, each once, until stream_finished.

        Heartbeats are not given. When the connection breaks or the daemon restarts, the stream goes on with the next
        event; ConnectionFailed (or Unavailable) is raised when the daemon has been out of reach for `give_up_after_s`
        seconds (None: never). Raises NotFound, and Gone when events after `after_seq` have been pruned.
        """
        following = self._core.following(job_id, after_seq=after_seq, give_up_after_s=give_up_after_s)
        return EventStream(self, following, give_up_after_s)

    def wait_job(
        self, job_id: str, *, timeout_s: float | None = None, give_up_after_s: float | None = GIVE_UP_AFTER
    ) -> Job:
        """The finished job. Raises DeadlineExceeded after `timeout_s` seconds in all (None: never); the job goes on."""
        waiting = Waiting(job_id, timeout_s=timeout_s)
        while not waiting.is_over(job := self._patiently(_calls.get_job(job_id), give_up_after_s)):
            while not waiting.must_ask(self._patiently(waiting.next_page(), give_up_after_s)):
                sleep(BETWEEN_PAGES)
        return job

    def get_job(self, job_id: str, *, include_chunks: bool = False, timeout_s: float | None = None) -> Job:
        """The job with its input, steps and, once it is finished, its result. Raises NotFound."""
        return self._call(_calls.get_job(job_id, include_chunks=include_chunks), timeout_s=timeout_s)

    def list_jobs(
        self,
        *,
        status: str | None = None,
        pipeline_type: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        timeout_s: float | None = None,
    ) -> JobPage:
        """A page of jobs, newest first: at most `limit` (1 to 500, by default 50) after the page with `cursor`."""
        call = _calls.list_jobs(status=status, pipeline_type=pipeline_type, labels=labels, limit=limit, cursor=cursor)
        return self._call(call, timeout_s=timeout_s)

    def iterate_jobs(
        self,
        *,
        status: str | None = None,
        pipeline_type: str | None = None,
        labels: Mapping[str, str] | None = None,
        page_size: int = 100,
    ) -> Iterator[Job]:
        """All jobs that fit, newest first, fetched in pages as they are needed: `for job in ...`."""
        pages = JobPages(status=status, pipeline_type=pipeline_type, labels=labels, page_size=page_size)
        while True:
            while (call := pages.next_call()) is not None:
                pages.take(self._call(call, timeout_s=None))
            job = pages.pop()
            if job is None:
                return
            yield job

    def cancel_job(self, job_id: str, *, reason: str = "", timeout_s: float | None = None) -> Job:
        """The job, once it is cancelled; a finished one stays as it is. Raises NotFound."""
        return self._call(_calls.cancel_job(job_id, reason=reason), timeout_s=timeout_s)

    def rerun_job(
        self,
        job_id: str,
        *,
        from_step_id: str | None = None,
        reuse_upstream: bool = False,
        override_input: JobInput | Object | None = None,
        pipeline: str = "latest",
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Job:
        """A new job, queued, that runs the job again; with `reuse_upstream` what has succeeded is taken over.

        `pipeline` is `latest`, the definition as it is now, or `same`. Raises NotFound, InvalidRequest.
        """
        call = _calls.rerun_job(
            job_id,
            from_step_id=from_step_id,
            reuse_upstream=reuse_upstream,
            override_input=override_input,
            pipeline=pipeline,
            key=idempotency_key,
        )
        return self._call(call, timeout_s=timeout_s)

    def delete_job(self, job_id: str, *, timeout_s: float | None = None) -> None:
        """Delete a finished job and all that belongs to it. Raises NotFound; Conflict while it runs."""
        self._call(_calls.delete_job(job_id), timeout_s=timeout_s)

    def list_checkpoints(self, job_id: str, *, timeout_s: float | None = None) -> list[StepCheckpoint]:
        """The finished items of a job, also while it runs. Raises NotFound."""
        return self._call(_calls.list_checkpoints(job_id), timeout_s=timeout_s)

    def list_events(
        self, job_id: str, *, after_seq: int = 0, limit: int | None = None, timeout_s: float | None = None
    ) -> EventPage:
        """The stored events after `after_seq`, `limit` (1 to 1000) at most; follow_job waits for those to come.

        Raises NotFound, and Gone when events after `after_seq` have been pruned.
        """
        return self._call(_calls.get_events(job_id, after_seq=after_seq, limit=limit), timeout_s=timeout_s)

    def get_artifact(self, job_id: str, artifact_id: str, *, timeout_s: float | None = None) -> bytes:
        """The bytes of an artifact: `artifact_id` is `item.data["artifact"]["id"]`. Raises NotFound."""
        return self._call(_calls.get_artifact(job_id, artifact_id), timeout_s=timeout_s)

    def save_artifact(
        self, job_id: str, artifact_id: str, path: str | os.PathLike[str], *, timeout_s: float | None = None
    ) -> int:
        """Write an artifact to a file, piece by piece, and give its size in bytes.

        The file is there once it is whole. Raises NotFound;
        ConnectionFailed when the connection breaks in the middle; OSError.
        """
        call = _calls.get_artifact(job_id, artifact_id)
        response = self._open(call, self._core.attempts(call), timeout_s=self._timeout(timeout_s))
        try:
            with PartFile(path) as file:
                for piece in response.iter_bytes():
                    file.write(piece)
        except httpx.HTTPError as exc:
            raise connection_failed(self._core.target, exc, job_id=job_id) from exc
        finally:
            response.close()
        return file.size

    # --- configuration, health

    def health(self, *, timeout_s: float | None = None) -> Health:
        """That the daemon is alive, and its version."""
        return self._call(_calls.health(), timeout_s=timeout_s)

    def list_pipelines(self, *, timeout_s: float | None = None) -> list[PipelineDef]:
        """The definitions that jobs can name."""
        return self._call(_calls.list_pipelines(), timeout_s=timeout_s)

    def get_pipeline(self, pipeline_type: str, *, timeout_s: float | None = None) -> PipelineDef:
        """The definition of that type. Raises NotFound."""
        return self._call(_calls.get_pipeline(pipeline_type), timeout_s=timeout_s)

    def put_pipeline(self, definition: PipelineDef | Object, *, timeout_s: float | None = None) -> PipelineDef:
        """Add or replace a definition. Raises InvalidRequest; Conflict when a file of the daemon defines the type."""
        return self._call(_calls.put_pipeline(definition), timeout_s=timeout_s)

    def delete_pipeline(self, pipeline_type: str, *, timeout_s: float | None = None) -> None:
        """Remove a definition that a client has put. Raises NotFound, Conflict."""
        self._call(_calls.delete_pipeline(pipeline_type), timeout_s=timeout_s)

    def validate_pipeline(self, definition: PipelineDef | Object, *, timeout_s: float | None = None) -> Validation:
        """What is wrong with a definition, each problem with its path; nothing is stored."""
        return self._call(_calls.validate_pipeline(definition), timeout_s=timeout_s)

    def list_providers(self, *, timeout_s: float | None = None) -> list[ProviderProfile]:
        """The provider profiles, without their secrets."""
        return self._call(_calls.list_providers(), timeout_s=timeout_s)

    def upsert_provider_profile(
        self, profile: ProviderProfile | Object, *, timeout_s: float | None = None
    ) -> ProviderProfile:
        """Add or replace a profile; without an `api_key` the old key stays, unless `base_uri` moves to another origin.

        Raises InvalidRequest; Forbidden for local tools, which only configuration files define; Conflict.
        """
        return self._call(_calls.upsert_provider_profile(profile), timeout_s=timeout_s)

    def delete_provider_profile(self, profile_id: str, *, timeout_s: float | None = None) -> None:
        """Remove a profile that a client has put. Raises NotFound, Conflict."""
        self._call(_calls.delete_provider_profile(profile_id), timeout_s=timeout_s)

    def update_engine_config(self, *, log_level: str | None = None, timeout_s: float | None = None) -> dict[str, Any]:
        """Change the daemon's log level, if one is given; the answer is the settings in force, by dotted keys."""
        return self._call(_calls.update_engine_config(log_level=log_level), timeout_s=timeout_s)

    def get_metrics(self, *, timeout_s: float | None = None) -> Metrics:
        """What the daemon counted since its start, by kind of provider."""
        return self._call(_calls.get_metrics(), timeout_s=timeout_s)

    # --- I/O

    def _call(self, call: Call[T], *, timeout_s: float | None) -> T:
        return self._perform(call, self._core.attempts(call), timeout_s=self._timeout(timeout_s))

    def _patiently(self, call: Call[T], give_up_after_s: float | None) -> T:
        attempts = self._core.attempts(call, give_up_after_s=give_up_after_s, is_long=True)
        return self._perform(call, attempts, timeout_s=SILENCE_TIMEOUT)

    def _perform(self, call: Call[T], attempts: Attempts, *, timeout_s: float | None) -> T:
        while True:
            response = self._open(call, attempts, timeout_s=timeout_s)
            try:
                content = response.read()
            except httpx.HTTPError as exc:
                pause = attempts.after_failure(exc)
            else:
                return read_answer(call, content)
            finally:
                response.close()
            sleep(pause)

    def _open(self, call: Call[Any], attempts: Attempts, *, timeout_s: float | None) -> httpx.Response:
        """The successful answer to a call, its body not yet read."""
        while True:
            attempts.begin()
            try:
                response = self._http.send(self._core.request(call, timeout_s=timeout_s), stream=True)
                if response.is_success:
                    return response
                try:
                    content = response.read()
                finally:
                    response.close()
            except httpx.HTTPError as exc:
                pause = attempts.after_failure(exc)
            else:
                pause = attempts.after_answer(response.status_code, response.headers, content)
            sleep(pause)

    def _timeout(self, timeout_s: float | None) -> float | None:
        return self._timeout_s if timeout_s is None else timeout_s


class EventStream:
    """The events of a job, as an iterator.

    Its connection is closed at the end, by `close` or `async with`, and at the latest with the client: leaving an
    `async for` early needs no care.
    """

    def __init__(self, client: PipelineEngineClient, following: Following, give_up_after_s: float | None) -> None:
        self._client = client
        self._following = following
        self._give_up_after_s = give_up_after_s
        self._events: list[Event] = []  # that have come and wait to be given, the next one last
        self._connection: tuple[httpx.Response, Iterator[bytes]] | None = None
        self._is_closed = False

    @property
    def job_id(self) -> str | None:
        """The job that is followed; None until a submitted one is known."""
        return self._following.job_id

    def __iter__(self) -> EventStream:
        return self

    def __next__(self) -> Event:
        try:
            while not self._events and not self._is_closed and not self._following.finished:
                self._read_more()
        except BaseException:
            self.close()
            raise
        if not self._events:
            self.close()
            raise StopIteration
        return self._events.pop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. The job goes on."""
        self._is_closed = True
        self._disconnect()

    def _read_more(self) -> None:
        """Wait for the next piece of the stream, or for what takes the place of a broken one."""
        pause = 0.0
        try:
            if self._connection is None:
                pause = self._connect()
            elif (piece := next(self._connection[1], None)) is not None:
                self._events = self._following.feed(piece)[::-1]
            else:
                self._disconnect()
                pause = self._ended()
        except httpx.HTTPError as exc:
            self._disconnect()
            pause = self._following.broke(exc)
        if pause:
            sleep(pause)

    def _connect(self) -> float:
        call = self._following.next_call()
        client = self._client
        response = client._http.send(client._core.stream_request(call), stream=True)  # noqa: SLF001
        if response.is_success:
            self._connection = response, response.iter_bytes()
            client._streams.add(self)  # noqa: SLF001
            self._following.opened()
            return 0.0
        try:
            content = response.read()
        finally:
            response.close()
        return self._following.refused(call, response.status_code, response.headers, content)

    def _ended(self) -> float:
        job = None
        if self._following.asks_for_job() and self.job_id is not None:
            job = self._client._patiently(_calls.get_job(self.job_id), self._give_up_after_s)  # noqa: SLF001
        return self._following.ended(job)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._client._streams.discard(self)  # noqa: SLF001
        if connection is not None:
            connection[0].close()
