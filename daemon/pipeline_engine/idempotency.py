"""Idempotency keys: the same key and body give the same job, also when they come at the same moment."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from pipeline_engine.errors import ConflictError, GoneError
from pipeline_engine.models import JobId
from pipeline_engine.store.access import StoreAccess
from pipeline_engine.store.base import IdempotencyRecord


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A client's key, and the body that it came with."""

    key: str
    body: bytes

    def record(self, *, used_at: float) -> IdempotencyRecord:
        """That the key was used at that time (see AgeClock), to be written with the job."""
        return IdempotencyRecord(key=self.key, body_hash=hashlib.sha256(self.body).digest(), used_at=used_at)


class IdempotencyKeys:
    """The keys that were used before, and those that are being used."""

    def __init__(self, *, access: StoreAccess) -> None:
        self._access = access
        self._under_way: dict[str, trio.Event] = {}

    @asynccontextmanager
    async def hold(self, key: IdempotencyKey | None) -> AsyncIterator[JobId | None]:
        """Gives the job that the key was used for, if there is one; others with the key wait until the block ends.

        Raises ConflictError when the key was used with another body, and GoneError when its job has been deleted.
        """
        if key is None:
            yield None
            return
        while (other := self._under_way.get(key.key)) is not None:
            await other.wait()
        done = self._under_way[key.key] = trio.Event()
        try:
            yield await self._find(key)
        finally:
            del self._under_way[key.key]
            done.set()

    async def _find(self, key: IdempotencyKey) -> JobId | None:
        found = await self._access.call(self._access.store.find_idempotency, key.key)
        if found is None:
            return None
        body_hash, job_id = found
        if body_hash != hashlib.sha256(key.body).digest():
            raise ConflictError(f"the Idempotency-Key {key.key!r} was used with another body")
        if await self._access.call(self._access.store.head, job_id) is None:
            words = f"was used for job {job_id}, which has been deleted; for a new job take another key"
            raise GoneError(f"the Idempotency-Key {key.key!r} {words}", details={"job_id": job_id})
        return job_id
