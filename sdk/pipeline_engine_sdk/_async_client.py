"""The client for trio and asyncio."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from . import _calls
from ._async_io import AsyncCaller, AsyncEventStream, AsyncJobs
from ._calls import Object
from ._client import GIVE_UP_AFTER, MAX_RETRIES, TIMEOUT, ClientCore, JobPages, PartFile
from ._event_loops import sleep
from ._following import BETWEEN_PAGES, Waiting
from ._models import (
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
from ._retries import connection_failed


class AsyncPipelineEngineClient:
    """A client of a daemon, for trio and asyncio.

        async with AsyncPipelineEngineClient() as client:
            job = await client.run_job({"pipeline_type": "notes.v1", "input": {"sources": [{"content": "..."}]}})
            async for event in client.follow_job(job.id):
                print(event.seq, event.event)

    The daemon is that of `base_url` (`http://HOST:PORT`, `unix:/path`) or of the unix socket `uds`; without either of
    them that of PIPELINE_ENGINE_URL, with the key of PIPELINE_ENGINE_API_KEY, or http://127.0.0.1:8085. A daemon on
    this machine is always reached directly, any other one through the proxy that the environment names.

    Calls that fail for want of a connection, or with 429, 502, 503 or 504, are made again up to `max_retries` times
    where that is safe: submissions carry an idempotency key, so they become one job. `timeout_s` is how long an
    attempt waits for the next piece of its answer, in seconds; None is for ever. A method's own `timeout_s` takes its
    place.

    All methods raise PipelineEngineError: ConnectionFailed, ProtocolError, or an ApiError such as NotFound. Requests are
    dicts or the typed models. A client belongs to the event loop that it is first used in (else WrongEventLoop); any
    number of tasks may share it. `transport` takes the place of the network, for tests.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        uds: str | os.PathLike[str] | None = None,
        api_key: str | None = None,
        timeout_s: float | None = TIMEOUT,
        max_retries: int = MAX_RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        core = ClientCore(base_url, uds=uds, api_key=api_key, max_retries=max_retries)
        self._core = core
        self._caller = AsyncCaller(core, timeout_s=timeout_s, transport=transport)

    async def __aenter__(self) -> Self:
        self._caller.check_loop()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections, also those of streams that were not read to their end.

            client = AsyncPipelineEngineClient()
            await client.health()
            await client.aclose()  # `async with` does it for you

        Jobs go on.
        """
        await self._caller.aclose()

    # --- jobs

    async def create_job(
        self, request: JobRequest | Object, *, idempotency_key: str | None = None, timeout_s: float | None = None
    ) -> Job:
        """The job, queued. Submitting again with the same key gives the same job, for 24 hours.

            job = await client.create_job({"pipeline_type": "notes.v1", "input": {"sources": [{"content": "..."}]}})
            print(job.id, job.status)

        Without a key each call makes one of its own. Raises UnknownPipeline, InvalidRequest, RateLimited, Unavailable,
        StoreFull; Conflict when the key came with another request.
        """
        return await self._caller.call(_calls.create_job(request, key=idempotency_key), timeout_s=timeout_s)

    async def run_job(
        self,
        request: JobRequest | Object,
        *,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
        give_up_after_s: float | None = GIVE_UP_AFTER,
    ) -> Job:
        """The finished job; look at its `status`. It goes on when the caller leaves, and when the daemon restarts.

            job = await client.run_job({"pipeline_type": "notes.v1", "input": {"sources": [{"content": "..."}]}})
            if job.result is not None and job.status == "succeeded":
                print([item.text for item in job.result.items])

        Waits as long as it takes, unless `timeout_s` bounds it (then ConnectionFailed); broken connections are made
        again until the daemon has been out of reach for `give_up_after_s` seconds.
        """
        call = _calls.create_job(request, key=idempotency_key, mode="sync")
        attempts = self._core.attempts(call, give_up_after_s=give_up_after_s, is_long=timeout_s is None)
        return await self._caller.perform(call, attempts, timeout_s=timeout_s)

    def stream_job(
        self,
        request: JobRequest | Object,
        *,
        idempotency_key: str | None = None,
        give_up_after_s: float | None = GIVE_UP_AFTER,
    ) -> AsyncEventStream:
        """Submit a job and follow it: all its events, from job_queued to stream_finished, each once.

            async for event in client.stream_job(request):
                if event.event == "provider_chunk":
                    print(event.data["content"], end="")

        As follow_job; leaving the loop does not cancel the job.
        """
        following = self._core.submitting(request, key=idempotency_key, give_up_after_s=give_up_after_s)
        return AsyncEventStream(self._caller, following, give_up_after_s)

    def follow_job(
        self, job_id: str, *, after_seq: int = 0, give_up_after_s: float | None = GIVE_UP_AFTER
    ) -> AsyncEventStream:
        """The events of a job with a greater seq than `after_seq`, each once, until stream_finished.

            async for event in client.follow_job(job.id):
                print(event.seq, event.event)

        Heartbeats are not given. When the connection breaks or the daemon restarts, the stream goes on with the next
        event; ConnectionFailed (or Unavailable) is raised when the daemon has been out of reach for `give_up_after_s`
        seconds (None: never). Raises NotFound, and Gone when events after `after_seq` have been pruned.
        """
        following = self._core.following(job_id, after_seq=after_seq, give_up_after_s=give_up_after_s)
        return AsyncEventStream(self._caller, following, give_up_after_s)

    async def wait_job(
        self, job_id: str, *, timeout_s: float | None = None, give_up_after_s: float | None = GIVE_UP_AFTER
    ) -> Job:
        """The finished job.

            job = await client.wait_job(job.id, timeout_s=60)

        Raises DeadlineExceeded after `timeout_s` seconds in all (None: never); the job goes on.
        """
        waiting = Waiting(job_id, timeout_s=timeout_s)
        while not waiting.is_over(job := await self._caller.patiently(_calls.get_job(job_id), give_up_after_s)):
            while not waiting.must_ask(await self._caller.patiently(waiting.next_page(), give_up_after_s)):
                await sleep(BETWEEN_PAGES)
        return job

    async def get_job(self, job_id: str, *, include_chunks: bool = False, timeout_s: float | None = None) -> Job:
        """The job with its input, its steps and, once it is finished, its result.

            job = await client.get_job(job.id)
            print(job.status, job.error)

        Raises NotFound.
        """
        return await self._caller.call(_calls.get_job(job_id, include_chunks=include_chunks), timeout_s=timeout_s)

    async def list_jobs(
        self,
        *,
        status: str | None = None,
        pipeline_type: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        timeout_s: float | None = None,
    ) -> JobPage:
        """A page of jobs, newest first: at most `limit` (1 to 500, by default 50) after the page with `cursor`.

            page = await client.list_jobs(status="failed", limit=10)
            print([job.id for job in page.jobs], page.next_cursor)

        `next_cursor` is None on the last page.
        """
        call = _calls.list_jobs(status=status, pipeline_type=pipeline_type, labels=labels, limit=limit, cursor=cursor)
        return await self._caller.call(call, timeout_s=timeout_s)

    def iterate_jobs(
        self,
        *,
        status: str | None = None,
        pipeline_type: str | None = None,
        labels: Mapping[str, str] | None = None,
        page_size: int = 100,
    ) -> AsyncJobs:
        """All jobs that fit, newest first.

            async for job in client.iterate_jobs(labels={"team": "search"}):
                print(job.id, job.status)

        They are fetched in pages, as they are needed.
        """
        pages = JobPages(status=status, pipeline_type=pipeline_type, labels=labels, page_size=page_size)
        return AsyncJobs(self._caller, pages)

    async def cancel_job(self, job_id: str, *, reason: str = "", timeout_s: float | None = None) -> Job:
        """The job, once it is cancelled.

            job = await client.cancel_job(job.id, reason="the wrong file")

        A finished one stays as it is. Raises NotFound.
        """
        return await self._caller.call(_calls.cancel_job(job_id, reason=reason), timeout_s=timeout_s)

    async def rerun_job(
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

            again = await client.rerun_job(job.id, from_step_id="summary", reuse_upstream=True)
            again = await client.wait_job(again.id)

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
        return await self._caller.call(call, timeout_s=timeout_s)

    async def delete_job(self, job_id: str, *, timeout_s: float | None = None) -> None:
        """Delete a finished job and all that belongs to it.

            await client.delete_job(job.id)

        Raises NotFound; Conflict while it runs.
        """
        await self._caller.call(_calls.delete_job(job_id), timeout_s=timeout_s)

    async def list_checkpoints(self, job_id: str, *, timeout_s: float | None = None) -> list[StepCheckpoint]:
        """The finished items of a job, also while it runs.

            for checkpoint in await client.list_checkpoints(job.id):
                print(checkpoint.step_id, checkpoint.shard_key)

        Raises NotFound.
        """
        return await self._caller.call(_calls.list_checkpoints(job_id), timeout_s=timeout_s)

    async def list_events(
        self, job_id: str, *, after_seq: int = 0, limit: int | None = None, timeout_s: float | None = None
    ) -> EventPage:
        """The stored events after `after_seq`, `limit` (1 to 1000) at most; follow_job waits for those to come.

            page = await client.list_events(job.id, after_seq=2, limit=100)
            print([event.event for event in page.events])

        Raises NotFound, and Gone when events after `after_seq` have been pruned.
        """
        return await self._caller.call(_calls.get_events(job_id, after_seq=after_seq, limit=limit), timeout_s=timeout_s)

    async def get_artifact(self, job_id: str, artifact_id: str, *, timeout_s: float | None = None) -> bytes:
        """The bytes of an artifact.

            image = await client.get_artifact(job.id, job.result.items[0].data["artifact"]["id"])

        Its id stands in the item that it belongs to. Raises NotFound.
        """
        return await self._caller.call(_calls.get_artifact(job_id, artifact_id), timeout_s=timeout_s)

    async def save_artifact(
        self, job_id: str, artifact_id: str, path: str | os.PathLike[str], *, timeout_s: float | None = None
    ) -> int:
        """Write an artifact to a file, piece by piece, and give its size in bytes.

            size = await client.save_artifact(job.id, job.result.items[0].data["artifact"]["id"], "picture.png")

        The file is there once it is whole. The event loop waits for the writing of each piece. Raises NotFound;
        ConnectionFailed when the connection breaks in the middle; OSError.
        """
        call = _calls.get_artifact(job_id, artifact_id)
        response = await self._caller.open(call, self._core.attempts(call), timeout_s=self._caller.timeout(timeout_s))
        try:
            with PartFile(path) as file:
                async for piece in response.aiter_bytes():
                    file.write(piece)
        except httpx.HTTPError as exc:
            raise connection_failed(self._core.target, exc, job_id=job_id) from exc
        finally:
            await response.aclose()
        return file.size

    # --- configuration, health

    async def health(self, *, timeout_s: float | None = None) -> Health:
        """That the daemon is alive, and its version.

            print((await client.health()).version)

        Raises ConnectionFailed when it is not.
        """
        return await self._caller.call(_calls.health(), timeout_s=timeout_s)

    async def list_pipelines(self, *, timeout_s: float | None = None) -> list[PipelineDef]:
        """The definitions that jobs can name.

            print([definition.type for definition in await client.list_pipelines()])

        Those of files, and those that clients have put.
        """
        return await self._caller.call(_calls.list_pipelines(), timeout_s=timeout_s)

    async def list_broken_files(self, *, timeout_s: float | None = None) -> list[str]:
        """What is wrong with each of the daemon's definition files that cannot be used; the text begins with its name.

            for words in await client.list_broken_files():
                print(words)

        What such a file said before, if anything, is still in force.
        """
        return await self._caller.call(_calls.list_broken_files(), timeout_s=timeout_s)

    async def get_pipeline(self, pipeline_type: str, *, timeout_s: float | None = None) -> PipelineDef:
        """The definition of that type.

            definition = await client.get_pipeline("notes.v1")
            print([step.id for step in definition.steps])

        Raises NotFound.
        """
        return await self._caller.call(_calls.get_pipeline(pipeline_type), timeout_s=timeout_s)

    async def put_pipeline(self, definition: PipelineDef | Object, *, timeout_s: float | None = None) -> PipelineDef:
        """Add or replace a definition.

            step = {"id": "copy", "kind": "map", "config": {"map": "identity"}, "export": True}
            await client.put_pipeline({"type": "copy.v1", "version": "1", "steps": [step]})

        Raises InvalidRequest; Conflict when a file of the daemon defines the type.
        """
        return await self._caller.call(_calls.put_pipeline(definition), timeout_s=timeout_s)

    async def delete_pipeline(self, pipeline_type: str, *, timeout_s: float | None = None) -> None:
        """Remove a definition that a client has put.

            await client.delete_pipeline("copy.v1")

        Raises NotFound, Conflict.
        """
        await self._caller.call(_calls.delete_pipeline(pipeline_type), timeout_s=timeout_s)

    async def validate_pipeline(
        self, definition: PipelineDef | Object, *, timeout_s: float | None = None
    ) -> Validation:
        """What is wrong with a definition, each problem with its path.

            validation = await client.validate_pipeline({"type": "copy.v1", "version": "1", "steps": []})
            print([problem.message for problem in validation.errors])

        Nothing is stored.
        """
        return await self._caller.call(_calls.validate_pipeline(definition), timeout_s=timeout_s)

    async def list_providers(self, *, timeout_s: float | None = None) -> list[ProviderProfile]:
        """The provider profiles.

            print([(profile.id, profile.default_model) for profile in await client.list_providers()])

        Their secrets are left out: keys can be set, never read.
        """
        return await self._caller.call(_calls.list_providers(), timeout_s=timeout_s)

    async def upsert_provider_profile(
        self, profile: ProviderProfile | Object, *, timeout_s: float | None = None
    ) -> ProviderProfile:
        """Add or replace a profile; without an `api_key` the old key stays, unless `base_uri` moves to another origin.

            await client.upsert_provider_profile(
                {"id": "mine", "kind": "openai", "base_uri": "http://127.0.0.1:8000/v1", "default_model": "small"}
            )

        Raises InvalidRequest; Forbidden for local tools, which only configuration files define; Conflict.
        """
        return await self._caller.call(_calls.upsert_provider_profile(profile), timeout_s=timeout_s)

    async def delete_provider_profile(self, profile_id: str, *, timeout_s: float | None = None) -> None:
        """Remove a profile that a client has put.

            await client.delete_provider_profile("mine")

        Raises NotFound, Conflict.
        """
        await self._caller.call(_calls.delete_provider_profile(profile_id), timeout_s=timeout_s)

    async def update_engine_config(
        self, *, log_level: str | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """The settings in force, by dotted keys.

            settings = await client.update_engine_config(log_level="debug")
            print(settings["log_level"])

        With `log_level` (debug, info, warning or error) the daemon's log level is changed first.
        """
        return await self._caller.call(_calls.update_engine_config(log_level=log_level), timeout_s=timeout_s)

    async def get_metrics(self, *, timeout_s: float | None = None) -> Metrics:
        """What the daemon counted since its start, by kind of provider.

            metrics = await client.get_metrics()
            print(metrics.provider_call_count)

        Latencies are in milliseconds, added up.
        """
        return await self._caller.call(_calls.get_metrics(), timeout_s=timeout_s)
