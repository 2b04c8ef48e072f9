"""What is pruned, in which order, and when. Virtual time; the wall-clock ages are written into the store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from tests.engine_setting import Setting, llm, names, open_setting
from trio.testing import MockClock

from pipeline_engine.errors import GoneError, NotFoundError
from pipeline_engine.models import JobId
from pipeline_engine.retention import Retention, RetentionRules
from pipeline_engine.store.access import StoreAccess
from pipeline_engine.store.artifacts import ArtifactFiles
from pipeline_engine.store.memory import MemoryStore

FOREVER = timedelta(days=10_000)


def retention(setting: Setting, tmp_path: Path, **rules: object) -> Retention:
    defaults = {"max_age": FOREVER, "chunk_age": FOREVER, "max_jobs": 1000}
    return Retention(
        rules=RetentionRules(**{**defaults, **rules}),  # type: ignore[arg-type]
        engine=setting.engine,
        access=StoreAccess(setting.store, threads=1),
        writer=setting.writer,
        artifacts=ArtifactFiles(tmp_path),
    )


async def finished(setting: Setting, *days: float) -> list[JobId]:
    """Jobs that ended so many days ago."""
    assert isinstance(setting.store, MemoryStore)
    ids = []
    for age in days:
        job = await setting.run([llm("a")], ["x"])
        ended = datetime.now(UTC) - timedelta(days=age)
        setting.store._jobs[job.id].finished_at = ended.isoformat(timespec="microseconds")
        ids.append(job.id)
    return ids


def left(setting: Setting, ids: list[JobId]) -> list[bool]:
    return [setting.store.head(job_id) is not None for job_id in ids]


async def test_old_jobs_go_and_running_ones_stay(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_setting() as setting:
        ids = await finished(setting, 40, 31, 29, 0)
        await retention(setting, tmp_path, max_age=timedelta(days=30)).prune()
        assert left(setting, ids) == [False, False, True, True]
        with pytest.raises(NotFoundError):
            await setting.engine.get_job(ids[0])


async def test_the_oldest_go_when_there_are_too_many(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_setting() as setting:
        ids = await finished(setting, 1, 5, 3, 2, 4)
        await retention(setting, tmp_path, max_jobs=2).prune()
        assert left(setting, ids) == [True, False, False, True, False]


async def test_chunks_go_before_the_rest_of_a_job(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_setting() as setting:
        ids = await finished(setting, 8, 6)
        await retention(setting, tmp_path, chunk_age=timedelta(days=7)).prune()
        assert left(setting, ids) == [True, True]
        assert "provider_chunk" not in names(setting.stored_events(ids[0]))
        assert "provider_chunk" in names(setting.stored_events(ids[1]))
        with pytest.raises(GoneError):
            await setting.events(ids[0])
        assert (await setting.engine.get_job(ids[0])).result is not None


async def test_space_is_made_by_chunks_first_and_then_by_jobs(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_setting() as setting:
        ids = await finished(setting, *range(30, 0, -1))
        whole = setting.store.used_bytes
        await retention(setting, tmp_path, max_bytes=whole - 100).prune()
        assert all(left(setting, ids))
        assert setting.store.used_bytes < whole
        await retention(setting, tmp_path, max_bytes=whole // 2).prune()
        kept = left(setting, ids)
        assert kept == sorted(kept)
        assert 5 < sum(kept) < 25


async def test_a_job_that_ends_makes_the_next_look(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_setting() as setting, trio.open_nursery() as nursery:
        nursery.start_soon(retention(setting, tmp_path, max_jobs=1).run)
        ids = await finished(setting, 0, 0, 0)
        await trio.sleep(5)
        assert left(setting, ids) == [False, False, True]
        nursery.cancel_scope.cancel()


async def test_artifacts_that_no_job_refers_to_are_collected(autojump_clock: MockClock, tmp_path: Path) -> None:
    import os

    files = ArtifactFiles(tmp_path)
    old, young, again = files.save(b"old"), files.save(b"young"), files.save(b"again")
    for sha256 in (old, again):
        os.utime(files.path(sha256), (0, 0))
    assert files.save(b"again") == again  # by a job that has not referred to it yet
    async with open_setting() as setting:
        await finished(setting, 5, 0)
        await retention(setting, tmp_path, max_jobs=1).prune()
        assert not files.path(old).exists()
        assert files.path(young).read_bytes() == b"young"
        assert files.path(again).read_bytes() == b"again"
