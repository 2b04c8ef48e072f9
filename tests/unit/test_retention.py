"""What is pruned, in which order, and when. Virtual time; the wall-clock ages are written into the store."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from tests.engine_setting import Script, ScriptedRegistry, Setting, job_request, llm, names, open_setting
from trio.testing import MockClock

from pipeline_engine.errors import GoneError, NotFoundError, StoreError, StoreFullError
from pipeline_engine.idempotency import IdempotencyKey
from pipeline_engine.models import JobId
from pipeline_engine.retention import Retention, RetentionRules
from pipeline_engine.store.access import StoreAccess
from pipeline_engine.store.age_clock import AgeClock
from pipeline_engine.store.artifacts import ArtifactFiles
from pipeline_engine.store.base import JobChange
from pipeline_engine.store.memory import MemoryStore

DAY_S = 24 * 3600
FOREVER = timedelta(days=10_000)


def retention(
    setting: Setting, files: ArtifactFiles | Path, *, clock: AgeClock | None = None, **rules: object
) -> Retention:
    defaults = {"max_age": FOREVER, "chunk_age": FOREVER, "max_jobs": 1000}
    return Retention(
        rules=RetentionRules(**{**defaults, **rules}),  # type: ignore[arg-type]
        engine=setting.engine,
        access=StoreAccess(setting.store, threads=1),
        writer=setting.writer,
        artifacts=ArtifactFiles(files) if isinstance(files, Path) else files,
        clock=clock or AgeClock(),
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


@pytest.mark.parametrize("failure", [StoreError("disk I/O error"), StoreFullError("no space")])
async def test_it_outlives_a_store_that_cannot_be_written(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: StoreError
) -> None:
    async with open_setting() as setting, trio.open_nursery() as nursery:
        ids = await finished(setting, 0, 0)
        writes = setting.store.write

        def fail(_: object) -> None:
            raise failure

        with monkeypatch.context() as patch:
            patch.setattr(setting.store, "write", fail)
            nursery.start_soon(retention(setting, tmp_path, max_jobs=1).run)
            await trio.sleep(100)
            assert setting.writer.failure is not None
        assert setting.store.write == writes
        await trio.sleep(100)
        assert left(setting, ids) == [False, True]
        nursery.cancel_scope.cancel()


class Time:
    """A clock that runs on by itself as far as it is told."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


async def test_a_wall_clock_that_leaps_forward_ages_nothing(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Time()
    clock = AgeClock(read=real)
    request = job_request([llm("a")])
    async with open_setting(clock=clock) as setting:
        keeper = retention(setting, tmp_path, clock=clock, max_age=timedelta(days=30), chunk_age=timedelta(days=7))
        job = await setting.engine.submit(request, idempotency=IdempotencyKey("k", b"body"))
        before = (await setting.engine.wait(job.id)).finished_at
        leapt = time.time() + 10 * 365 * DAY_S
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: leapt)
            patch.setattr(time, "time_ns", lambda: int(leapt) * 10**9)
            later = await setting.run([llm("a")], ["x"])
            await keeper.prune()
        assert before is not None
        assert later.finished_at is not None
        assert later.finished_at[:3] > before[:3]
        again = await setting.engine.submit(request, idempotency=IdempotencyKey("k", b"body"))
        assert again.id == job.id
        assert "provider_chunk" in names(setting.stored_events(job.id))
        # The clock is set right again: what was stamped in ten years is as old as it really is.
        real.seconds += 8 * DAY_S
        await keeper.prune()
        assert left(setting, [job.id, later.id]) == [True, True]
        assert "provider_chunk" not in names(setting.stored_events(later.id))
        anew = await setting.engine.submit(request, idempotency=IdempotencyKey("k", b"body"))
        assert anew.id != job.id
        real.seconds += 23 * DAY_S
        await keeper.prune()
        assert left(setting, [job.id, later.id, anew.id]) == [False, False, True]


async def test_keys_are_kept_for_a_day_whatever_becomes_of_their_jobs(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    clock = AgeClock(read=trio.current_time)
    registry = ScriptedRegistry({"slow": [Script(first=10 * DAY_S)]})
    async with open_setting(clock=clock, registry=registry) as setting, trio.open_nursery() as nursery:
        nursery.start_soon(retention(setting, tmp_path, clock=clock, max_jobs=0).run)
        hour = 3600
        await trio.sleep(hour)  # nothing is due when retention looks for the first time
        pruned = await setting.engine.submit(job_request([llm("a")]), idempotency=IdempotencyKey("pruned", b"body"))
        await trio.sleep(hour)
        assert left(setting, [pruned.id]) == [False]
        with pytest.raises(GoneError, match=pruned.id):
            await setting.engine.submit(job_request([llm("a")]), idempotency=IdempotencyKey("pruned", b"body"))
        # From here on no job ends.
        await setting.engine.submit(job_request([llm("a", "slow")]), idempotency=IdempotencyKey("running", b"body"))
        await trio.sleep(23 * hour - 5)
        assert setting.store.find_idempotency("pruned") is not None
        await trio.sleep(10)
        assert setting.store.find_idempotency("pruned") is None
        assert setting.store.find_idempotency("running") is not None
        await trio.sleep(hour)
        assert setting.store.find_idempotency("running") is None
        nursery.cancel_scope.cancel()


async def test_a_key_of_a_job_that_never_ends_expires_though_nothing_was_due_before(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    clock = AgeClock(read=trio.current_time)
    registry = ScriptedRegistry({"slow": [Script(first=10 * DAY_S)]})
    async with open_setting(clock=clock, registry=registry) as setting, trio.open_nursery() as nursery:
        nursery.start_soon(retention(setting, tmp_path, clock=clock).run)
        await trio.sleep(3600)  # retention has looked: no job that could be due, and no key
        await setting.engine.submit(job_request([llm("a", "slow")]), idempotency=IdempotencyKey("k", b"body"))
        await trio.sleep(DAY_S - 5)
        assert setting.store.find_idempotency("k") is not None
        await trio.sleep(10)
        assert setting.store.find_idempotency("k") is None
        nursery.cancel_scope.cancel()


async def test_artifacts_go_with_the_last_job_that_has_them(autojump_clock: MockClock, tmp_path: Path) -> None:
    files = ArtifactFiles(tmp_path)
    async with open_setting() as setting:
        ids = await finished(setting, 40, 35, 1)
        old, shared, young = [await own(setting, files, owners) for owners in (ids[:1], ids[1:], ids[2:])]
        await retention(setting, files, max_age=timedelta(days=30)).prune()
        assert left(setting, ids) == [False, False, True]
        assert [files.path(sha256).exists() for sha256 in (old, shared, young)] == [False, True, True]


def files_in(directory: Path) -> set[str]:
    return {path.name for path in directory.rglob("*") if path.is_file()}


async def own(setting: Setting, files: ArtifactFiles, job_ids: list[JobId]) -> str:
    """An artifact that these finished jobs have."""
    sha256 = files.save(",".join(job_ids).encode(), job_id=job_ids[0])
    for job_id in job_ids:
        await setting.writer.execute(JobChange(job_id=job_id, artifacts=[sha256]))
    files.release(job_ids[0])
    return sha256


async def test_what_a_crash_left_of_artifacts_goes_at_the_start(autojump_clock: MockClock, tmp_path: Path) -> None:
    before = ArtifactFiles(tmp_path)
    async with open_setting() as setting, trio.open_nursery() as nursery:
        [job_id] = await finished(setting, 0)
        kept = await own(setting, before, [job_id])
        lost = before.save(b"no job came to refer to it", job_id=JobId("job_lost"))
        (tmp_path / ".half").write_bytes(b"written")
        files = ArtifactFiles(tmp_path)
        running = files.save(b"of a job that has just begun", job_id=JobId("job_running"))
        nursery.start_soon(retention(setting, files).run)
        await trio.sleep(5)
        assert files_in(tmp_path) == {kept, running}
        assert not before.path(lost).exists()
        assert files.used_bytes == sum(files.path(sha256).stat().st_size for sha256 in (kept, running))
        nursery.cancel_scope.cancel()
