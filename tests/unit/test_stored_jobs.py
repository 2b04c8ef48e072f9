"""Jobs that are deleted while they are read: what is read is whole, or there is no such job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.engine_setting import Script, ScriptedRegistry, llm, open_setting
from trio.testing import MockClock

from pipeline_engine.errors import NotFoundError
from pipeline_engine.models import JobId
from pipeline_engine.reruns import read_parent
from pipeline_engine.store.base import DeleteJobs, Store
from pipeline_engine.stored_jobs import read_job

READS = ("get_job", "read_checkpoints", "read_events")


class DeletingStore:
    """A store that loses a job before the read of that number."""

    def __init__(self, store: Store, job_id: JobId, *, deleted_before: int) -> None:
        self._store = store
        self._job_id = job_id
        self._deleted_before = deleted_before
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        if name in READS:
            self.reads += 1
            if self.reads == self._deleted_before:
                self._store.write([DeleteJobs([self._job_id])])
        return getattr(self._store, name)


@pytest.mark.parametrize("read", [read_job, read_parent])
@pytest.mark.parametrize("deleted_before", [1, 2, 3])
async def test_a_job_that_is_deleted_between_two_reads_is_not_there(
    autojump_clock: MockClock, read: Callable[[Any, JobId], object], deleted_before: int
) -> None:
    async with open_setting() as setting:
        job = await setting.run([llm("a")], ["x"])
        whole = DeletingStore(setting.store, job.id, deleted_before=0)
        read(whole, job.id)
        assert whole.reads == 3
        with pytest.raises(NotFoundError, match=job.id):
            read(DeletingStore(setting.store, job.id, deleted_before=deleted_before), job.id)


async def test_an_unfinished_job_that_is_deleted_while_it_is_read_is_not_there(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry({"slow": [Script(first=100)]})
    async with open_setting(registry=registry) as setting:
        job = await setting.submit([llm("a", "slow")], ["x"])
        with pytest.raises(NotFoundError, match=job.id):
            read_job(DeletingStore(setting.store, job.id, deleted_before=2), job.id)
