"""Keeps what providers made as artifacts, and waits while the disk does not take them."""

from __future__ import annotations

import logging
from functools import partial

import trio

from pipeline_engine.errors import StoreError
from pipeline_engine.models import JobId
from pipeline_engine.steps.context import Services
from pipeline_engine.store.writer import FIRST_RETRY, MAX_RETRY

log = logging.getLogger(__name__)


async def keep_artifact(services: Services, data: bytes, *, job_id: JobId) -> str:
    """The SHA-256 of the bytes, once they are kept.

    What a provider has made is not thrown away because the disk is full or fails: it is tried again until it can be
    kept, within the time of the step and the job. As long as somebody waits, no new jobs are accepted.
    """
    files = services.artifacts
    save = partial(trio.to_thread.run_sync, partial(files.save, data, job_id=job_id), limiter=services.workers)
    try:
        return await save()
    except StoreError as exc:
        failure = exc
    log.error("job %s waits: %s", job_id, failure.message)
    pause = FIRST_RETRY
    with files.waiting(failure):
        while True:
            await trio.sleep(pause)
            pause = min(pause * 2, MAX_RETRY)
            try:
                sha256 = await save()
            except StoreError:
                continue
            log.warning("job %s goes on: its artifact is kept", job_id)
            return sha256
