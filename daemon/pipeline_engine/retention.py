"""Removes finished jobs, and before them their token chunks, when they are due."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import trio

from pipeline_engine.engine import Engine
from pipeline_engine.errors import StoreError
from pipeline_engine.models import JobId
from pipeline_engine.store.access import StoreAccess
from pipeline_engine.store.artifacts import ArtifactFiles
from pipeline_engine.store.base import DeleteJobs, FinishedJob, ForgetIdempotencyKeys, PruneChunks
from pipeline_engine.store.writer import StoreWriter

log = logging.getLogger(__name__)

BATCH = 100  # jobs that one transaction removes, so that none holds up the others for long
PAUSE = 1.0  # seconds between a job's end and the look at what is due: many ends make one look
RETRY_PAUSE = 30.0  # seconds after a failure of the store
KEY_AGE_S = 24 * 3600  # for which an Idempotency-Key is kept
ARTIFACT_AGE_S = 3600  # an artifact this young may belong to an item that is about to be stored


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRules:
    """See contract 8, `[store.retention]`. None is no limit."""

    max_age: timedelta
    chunk_age: timedelta
    max_jobs: int
    max_bytes: int | None = None


class Retention:
    """Keeps the store within the rules; `run` sleeps until a job ends or becomes due."""

    def __init__(
        self,
        *,
        rules: RetentionRules,
        engine: Engine,
        access: StoreAccess,
        writer: StoreWriter,
        artifacts: ArtifactFiles,
    ) -> None:
        self._rules = rules
        self._engine = engine
        self._access = access
        self._writer = writer
        self._artifacts = artifacts

    async def run(self) -> None:
        while True:
            ended = self._engine.next_end
            try:
                await self.prune()
                wait_s = await self._until_due()
            except StoreError as exc:
                log.warning("nothing could be pruned: %s", exc.message)
                wait_s = RETRY_PAUSE
            with trio.move_on_after(wait_s):
                await ended.wait()
                await trio.sleep(PAUSE)

    async def prune(self) -> None:
        """Remove all that is due now. Raises StoreError."""
        now = datetime.now(UTC)
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
        await self._writer.execute(ForgetIdempotencyKeys(time.time() - KEY_AGE_S))
        if removed:
            log.info("pruned %d finished jobs", removed)
            await self._collect_artifacts()

    def _too_large(self) -> bool:
        return self._rules.max_bytes is not None and self._access.store.used_bytes > self._rules.max_bytes

    async def _oldest(self, limit: int, *, with_chunks: bool = False) -> list[FinishedJob]:
        def read() -> list[FinishedJob]:
            return self._access.store.finished_jobs(limit=limit, with_chunks=with_chunks)

        return await self._access.call(read)

    async def _overdue(self, age: timedelta, now: datetime, *, with_chunks: bool) -> list[FinishedJob]:
        jobs = await self._oldest(BATCH, with_chunks=with_chunks)
        return [job for job in jobs if datetime.fromisoformat(job.finished_at) + age <= now]

    async def _delete_oldest(self, count: int) -> int:
        return await self._delete([job.job_id for job in await self._oldest(count)])

    async def _delete(self, job_ids: Sequence[JobId]) -> int:
        if job_ids:
            await self._writer.execute(DeleteJobs(job_ids))
        return len(job_ids)

    async def _prune_chunks(self, jobs: Sequence[FinishedJob]) -> int:
        writes = [self._writer.post(PruneChunks(job.job_id)) for job in jobs]
        for write in writes:
            await write.wait()
        return len(jobs)

    async def _until_due(self) -> float:
        """Seconds until the next job, or its chunks, are due; infinite when none is."""
        due: list[datetime] = []
        for age, with_chunks in ((self._rules.max_age, False), (self._rules.chunk_age, True)):
            for job in await self._oldest(1, with_chunks=with_chunks):
                due.append(datetime.fromisoformat(job.finished_at) + age)
        if not due:
            return float("inf")
        return max(PAUSE, (min(due) - datetime.now(UTC)).total_seconds())

    async def _collect_artifacts(self) -> None:
        def collect() -> int:
            used = self._access.store.artifacts_in_use()
            return self._artifacts.remove_unused(used, older_than_s=ARTIFACT_AGE_S, now=time.time())

        count = await self._access.call(collect)
        if count:
            log.info("removed %d artifacts that no job refers to", count)
