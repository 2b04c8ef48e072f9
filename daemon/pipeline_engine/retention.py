"""Removes finished jobs, and before them their token chunks, when they are due."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import trio

from pipeline_engine.engine import Engine
from pipeline_engine.errors import PipelineEngineError
from pipeline_engine.models import JobId
from pipeline_engine.store.access import StoreAccess
from pipeline_engine.store.age_clock import AgeClock, seconds_of
from pipeline_engine.store.artifacts import ArtifactFiles
from pipeline_engine.store.base import DeleteJobs, FinishedJob, ForgetIdempotencyKeys, PruneChunks
from pipeline_engine.store.writer import StoreWriter

log = logging.getLogger(__name__)

BATCH = 100  # jobs that one transaction removes, so that none holds up the others for long
PAUSE = 1.0  # seconds between a job's end, or its deletion, and the look at what is due: many make one look
RETRY_PAUSE = 30.0  # seconds after a failure of the store
KEY_AGE_S = 24 * 3600  # for which an Idempotency-Key is kept


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRules:
    """See contract 8, `[store.retention]`. None is no limit."""

    max_age: timedelta
    chunk_age: timedelta
    max_jobs: int
    max_bytes: int | None = None


class Retention:
    """Keeps the store within the rules; `run` sleeps until a job ends, or something becomes due."""

    def __init__(
        self,
        *,
        rules: RetentionRules,
        engine: Engine,
        access: StoreAccess,
        writer: StoreWriter,
        artifacts: ArtifactFiles,
        clock: AgeClock,
    ) -> None:
        self._rules = rules
        self._engine = engine
        self._access = access
        self._writer = writer
        self._artifacts = artifacts
        self._clock = clock

    async def run(self) -> None:
        swept = False
        while True:
            ended = self._engine.next_end
            try:
                if not swept:
                    await self._sweep()
                    swept = True
                await self.prune()
                wait_s = await self._until_due()
            except (PipelineEngineError, OSError) as exc:  # of the store, or of its writer, which refuses meanwhile
                log.warning("nothing could be pruned: %s", exc)
                wait_s = RETRY_PAUSE
            with trio.move_on_after(wait_s):
                await ended.wait()
                await trio.sleep(PAUSE)

    async def prune(self) -> None:
        """Remove all that is due now. Raises StoreError and UnavailableError."""
        now = self._clock.now()
        removed = 0
        while old := await self._overdue(self._rules.max_age, now, with_chunks=False):
            removed += await self._delete([job.job_id for job in old])
        excess = await self._access.call(self._access.store.count_finished) - self._rules.max_jobs
        while excess > 0 and (count := await self._delete_oldest(min(BATCH, excess))):
            excess -= count
            removed += count
        # Chunks go before whole jobs where space is short.
        while self._too_large() and await self._prune_chunks(await self._oldest(BATCH, with_chunks=True)):
            pass
        while self._too_large() and (count := await self._delete_oldest(BATCH // 10)):
            removed += count
        while await self._prune_chunks(await self._overdue(self._rules.chunk_age, now, with_chunks=True)):
            pass
        await self._writer.execute(ForgetIdempotencyKeys(now - KEY_AGE_S))
        await self._remove_artifacts()
        if removed:
            log.info("pruned %d finished jobs", removed)

    def _too_large(self) -> bool:
        used = self._access.store.used_bytes + self._artifacts.used_bytes
        return self._rules.max_bytes is not None and used > self._rules.max_bytes

    async def _oldest(self, limit: int, *, with_chunks: bool = False) -> list[FinishedJob]:
        def read() -> list[FinishedJob]:
            return self._access.store.finished_jobs(limit=limit, with_chunks=with_chunks)

        return await self._access.call(read)

    async def _overdue(self, age: timedelta, now: float, *, with_chunks: bool) -> list[FinishedJob]:
        jobs = await self._oldest(BATCH, with_chunks=with_chunks)
        return [job for job in jobs if seconds_of(job.finished_at) + age.total_seconds() <= now]

    async def _delete_oldest(self, count: int) -> int:
        return await self._delete([job.job_id for job in await self._oldest(count)])

    async def _delete(self, job_ids: Sequence[JobId]) -> int:
        if job_ids:
            artifacts = await self._access.call(self._access.store.artifacts_of, job_ids)
            # Once they are gone nothing else tells of their artifacts, even if we are cancelled meanwhile.
            doubt = partial(self._artifacts.doubt, artifacts)
            await self._writer.post(DeleteJobs(job_ids), refusable=True, on_commit=doubt).wait()
            await self._remove_artifacts()
        return len(job_ids)

    async def _prune_chunks(self, jobs: Sequence[FinishedJob]) -> int:
        writes = [self._writer.post(PruneChunks(job.job_id)) for job in jobs]
        for write in writes:
            await write.wait()
        return len(jobs)

    async def _until_due(self) -> float:
        """Seconds until the next job, or its chunks, or an idempotency key is due."""
        # A key that is used from now on is not due before; until then nobody need tell us of it.
        due = [self._clock.now() + KEY_AGE_S]
        oldest = await self._access.call(self._access.store.oldest_idempotency)
        if oldest is not None:
            due.append(oldest + KEY_AGE_S)
        for age, with_chunks in ((self._rules.max_age, False), (self._rules.chunk_age, True)):
            for job in await self._oldest(1, with_chunks=with_chunks):
                due.append(seconds_of(job.finished_at) + age.total_seconds())
        return max(PAUSE, min(due) - self._clock.now())

    async def _remove_artifacts(self) -> None:
        """Remove those that the jobs which ended or were deleted have left to nobody."""
        if self._artifacts.doubtful:
            removed = await self._access.call(self._artifacts.remove_doubtful, self._access.store.artifacts_in_use)
            _tell_of_removed(removed)

    async def _sweep(self) -> None:
        """Remove what a crash has left of artifacts, and learn how much they hold."""

        def sweep() -> int:
            return self._artifacts.remove_unused(self._access.store.artifacts_in_use())

        _tell_of_removed(await self._access.call(sweep))


def _tell_of_removed(artifacts: int) -> None:
    if artifacts:
        log.info("removed %d artifacts that no job has", artifacts)
