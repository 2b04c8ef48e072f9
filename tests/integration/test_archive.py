"""Export and import on real stores and files: what comes back is what was there, to the byte, or nothing."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.api_setting import open_api
from tests.archive_setting import NOW, exported, imported, make_jobs
from tests.drawing_setting import PNG, DrawingRegistry, drawing
from tests.engine_setting import Script, ScriptedRegistry, llm, open_setting, statuses, texts

from pipeline_engine.archive import exporting
from pipeline_engine.archive.exporting import export_jobs, finished_jobs
from pipeline_engine.archive.importing import import_jobs
from pipeline_engine.errors import InvalidRequestError, StoreError, StoreFullError
from pipeline_engine.models import JobId, RerunRequest, StepId
from pipeline_engine.store.age_clock import to_stamp
from pipeline_engine.store.artifacts import ArtifactFiles
from pipeline_engine.store.base import DeleteJobs, EventRecord, JobFilter, Operation, PruneChunks, Store
from pipeline_engine.store.memory import MemoryStore
from pipeline_engine.store.sqlite import open_sqlite_store, open_sqlite_store_to_read

SLOW = Script(first=1000)


@pytest.fixture(params=["memory", "sqlite"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened: Store = MemoryStore() if request.param == "memory" else open_sqlite_store(tmp_path / "new" / "engine.db")
    yield opened
    opened.close()


@pytest.fixture
def files(tmp_path: Path) -> ArtifactFiles:
    return ArtifactFiles(tmp_path / "new" / "artifacts")


async def archive_of_all_kinds(tmp_path: Path) -> tuple[bytes, list[JobId]]:
    store = open_sqlite_store(tmp_path / "old" / "engine.db")
    job_ids = await make_jobs(store, tmp_path / "old" / "artifacts")
    archive, report = exported(store, ArtifactFiles(tmp_path / "old" / "artifacts"))
    assert (report.exported, report.left_out) == (len(job_ids), {})
    store.close()
    return archive, job_ids


def left_of(files: ArtifactFiles, tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "new" / "artifacts").rglob("*") if path.is_file()]


async def test_an_export_of_what_was_imported_has_the_same_bytes(
    empty: Store, files: ArtifactFiles, tmp_path: Path
) -> None:
    archive, job_ids = await archive_of_all_kinds(tmp_path)
    report = imported(empty, files, archive)
    assert (list(report.imported), report.present, report.refused) == (job_ids, [], [])
    assert exported(empty, files)[0] == archive
    again = imported(empty, files, archive)
    assert (list(again.imported), again.present, again.refused) == ([], job_ids, [])


async def test_an_imported_job_answers_as_the_one_that_was_exported(tmp_path: Path) -> None:
    archive, job_ids = await archive_of_all_kinds(tmp_path)
    store = open_sqlite_store(tmp_path / "new" / "engine.db")
    imported(store, ArtifactFiles(tmp_path / "new" / "artifacts"), archive)
    old = open_sqlite_store(tmp_path / "old" / "engine.db")
    async with (
        open_api(store=store, artifacts=tmp_path / "new" / "artifacts") as api,
        open_api(store=old, artifacts=tmp_path / "old" / "artifacts") as before,
    ):
        for job_id in job_ids:
            for path in (
                "",
                "?include=chunks",
                "/checkpoints",
                "/events",
                "/events?after_seq=3",
                "/stream?after_seq=2",
            ):
                wanted = await before.ask("GET", f"/v1/jobs/{job_id}{path}")
                answer = await api.ask("GET", f"/v1/jobs/{job_id}{path}")
                assert (answer.status, answer.body) == (wanted.status, wanted.body), path
            sse = {"accept": "text/event-stream"}
            assert (await api.ask("GET", f"/v1/jobs/{job_id}/stream", headers=sse)).status in (200, 410)
        assert (await api.ask("GET", "/v1/jobs")).json == (await before.ask("GET", "/v1/jobs")).json
        found = (await api.ask("GET", "/v1/jobs?label=k:v")).json["jobs"]
        assert [job["id"] for job in found] == [job_ids[0]]
        drawn = (await api.ask("GET", f"/v1/jobs/{job_ids[3]}")).json["job"]
        picture = await api.ask("GET", drawn["result"]["items"][0]["data"]["artifact"]["url"])
        assert picture.body == PNG
    store.close()
    old.close()


async def test_an_imported_job_is_rerun_like_any_other(tmp_path: Path) -> None:
    archive, job_ids = await archive_of_all_kinds(tmp_path)
    store = open_sqlite_store(tmp_path / "new" / "engine.db")
    imported(store, ArtifactFiles(tmp_path / "new" / "artifacts"), archive)
    registry = DrawingRegistry()
    async with open_setting(store=store, registry=registry, artifacts=tmp_path / "new" / "artifacts") as setting:
        job = await setting.engine.rerun(job_ids[1], RerunRequest(reuse_upstream=True, pipeline="same"))
        done = await setting.engine.wait(job.id)
        assert statuses(done) == {"a": "skipped", "b": "success"}
        assert len(registry.calls) == 1
        again = await setting.engine.rerun(job_ids[3], RerunRequest(reuse_upstream=True, from_step_id=StepId("a")))
        done = await setting.engine.wait(again.id)
        assert store.artifacts_of([again.id]) == store.artifacts_of([job_ids[3]])
        assert texts(done, "a") == ["ok"]
    store.close()


@pytest.mark.parametrize("seed", range(6))
async def test_a_damaged_archive_brings_whole_jobs_or_none(
    empty: Store, files: ArtifactFiles, tmp_path: Path, seed: int
) -> None:
    archive, job_ids = await archive_of_all_kinds(tmp_path)
    whole = {name: lines_of(archive, name) for name in job_ids}
    chance = random.Random(seed)
    for _ in range(3):
        damaged = damage(archive.splitlines(keepends=True), chance)
        report = imported(empty, files, damaged)
        assert all(line >= 1 and message for line, message in report.refused)
        kept, _ = exported(empty, files)
        for name in report.imported:
            assert lines_of(kept, name) == whole[name]
        assert {summary_id(one.job) for one in empty.list_jobs(JobFilter())} == set(report.imported)
        empty.write([DeleteJobs(list(report.imported))])
        for path in left_of(files, tmp_path):
            path.unlink()  # of the jobs that were whole


def damage(lines: list[bytes], chance: random.Random) -> bytes:
    """One line is lost, doubled, cut, moved, or has a byte that is another."""
    at = chance.randrange(1, len(lines))
    line = lines[at]
    match chance.randrange(5):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, line)
        case 2:
            lines[at] = line[: chance.randrange(len(line))] + b"\n"
        case 3:
            lines.insert(chance.randrange(1, len(lines)), lines.pop(at))
        case _:
            place = chance.randrange(len(line))
            lines[at] = line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :]
    return b"".join(lines)


def lines_of(archive: bytes, job_id: str) -> list[bytes]:
    lines = archive.splitlines()
    begins = next(
        number for number, line in enumerate(lines) if line.startswith(b'{"record":"job"') and job_id.encode() in line
    )
    return lines[begins : next(n for n in range(begins, len(lines)) if b'"record":"job_end"' in lines[n])]


def summary_id(job: bytes) -> str:
    return str(json.loads(job)["id"])


async def test_jobs_that_are_not_whole_are_left_out_and_named(tmp_path: Path) -> None:
    store = MemoryStore()
    files = ArtifactFiles(tmp_path)
    registry = DrawingRegistry({"slow": [SLOW]})
    async with open_setting(store=store, registry=registry, artifacts=tmp_path) as setting:
        running = await setting.submit([llm("a", "slow")])
        lost = await setting.run([drawing("p")], ["x"])
        damaged = await setting.run([drawing("p")], ["y"])
        kept = await setting.run([llm("a")])
        [sha256] = store.artifacts_of([lost.id])
        wanted = [running.id, lost.id, damaged.id, JobId("job_unknown"), kept.id]
        files.path(sha256).write_bytes(PNG[:-1])
        archive, report = exported(store, files, wanted)
        assert report.left_out == {
            running.id: "it is running; only finished jobs are exported",
            lost.id: f"its artifact {sha256} is damaged",
            damaged.id: f"its artifact {sha256} is damaged",
            "job_unknown": "there is no such job",
        }
        files.path(sha256).unlink()
        archive, report = exported(store, files)
        assert report.left_out[lost.id] == f"its artifact {sha256} cannot be read: No such file or directory"
        assert list(imported(MemoryStore(), files, archive).imported) == [kept.id]


async def test_a_job_that_is_pruned_or_deleted_while_it_is_exported_is_written_whole_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_sqlite_store(tmp_path / "engine.db")
    files = ArtifactFiles(tmp_path / "artifacts")
    [first, *_, last, _] = await make_jobs(store, tmp_path / "artifacts")
    read_events = store.read_events
    meanwhile: dict[JobId, Operation] = {first: PruneChunks(first), last: DeleteJobs([last])}

    def read_a_little(job_id: JobId, *, after_seq: int = 0) -> list[EventRecord]:
        if after_seq and job_id in meanwhile:
            store.write([meanwhile.pop(job_id)])
        return read_events(job_id, after_seq=after_seq, limit=3)

    with monkeypatch.context() as patch:
        patch.setattr(store, "read_events", read_a_little)
        archive, report = exported(store, files)
    assert meanwhile == {}
    assert report.left_out == {last: "there is no such job"}
    again = MemoryStore()
    assert list(imported(again, ArtifactFiles(tmp_path / "again"), archive).imported) == list_of(store)
    assert again.head(first) == store.head(first)
    store.close()


def list_of(store: Store) -> list[str]:
    return [summary_id(one.job) for one in store.list_jobs(JobFilter(after=0))]


async def test_no_secret_is_exported(tmp_path: Path) -> None:
    store = MemoryStore()
    step = llm("a")
    step["provider_override"] |= {"headers": {"X-Token": "hush-hush"}}
    async with open_setting(store=store) as setting:
        await setting.run([step], ["x"])
    archive, _ = exported(store, ArtifactFiles(tmp_path))
    assert b"hush-hush" not in archive
    assert b'"X-Token":"***"' in archive
    copy = MemoryStore()
    assert imported(copy, ArtifactFiles(tmp_path), archive).refused == []
    assert exported(copy, ArtifactFiles(tmp_path))[0] == archive


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        (b"", "line 1: this is no archive of jobs"),
        (b"\x1f\x8b\x08\n", "line 1: is no record of an archive"),
        (b'{"jobs":[]}\n', "line 1: is no record of an archive"),
        (b'{"record":"end","jobs":0}\n', "line 1: this is no archive of jobs"),
        (b'{"record":"header","format":"other","version":1}\n', "line 1: this is no archive of jobs"),
        (b'{"record":"header","format":"pipeline-engine-jobs","version":2}\n', "line 1: the archive is of version 2"),
    ],
)
def test_a_file_that_is_no_archive_is_refused_as_a_whole(tmp_path: Path, archive: bytes, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(f"jobs.ndjson: {words}")):
        imported(MemoryStore(), ArtifactFiles(tmp_path), archive)


async def test_archives_can_be_joined_and_a_cut_one_is_noticed(
    empty: Store, files: ArtifactFiles, tmp_path: Path
) -> None:
    archive, job_ids = await archive_of_all_kinds(tmp_path)
    assert imported(empty, files, archive + archive).present == job_ids
    lines = archive.splitlines(keepends=True)
    for kept in (len(lines) - 1, len(lines) - 2):
        report = imported(MemoryStore(), files, b"".join(lines[:kept]))
        assert len(report.imported) == len(job_ids) - (len(lines) - 1 - kept)
        assert report.refused[-1] == (kept, "the archive has no end; it may have been cut")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'"status":"succeeded"', b'"status":"running"', "the job is running; only finished jobs are imported"),
        (
            b'"depends_on":["a"]',
            b'"depends_on":["b"]',
            "the definition cannot be used: steps: the dependencies form a cycle",
        ),
        (b'"record":"event"', b'"record":"evil"', "is no record of an archive: Invalid value 'evil'"),
        (b'"seq":2,', b'"seq":3,', "the event has seq 3; 2 is expected"),
        (b'"event":"job_started"', b'"event":"job_\xc3\xa9"', "'job_é' is not the name of an event"),
        (b'"position":1,', b'"position":2,', "step 'b' does not stand at place 2"),
        (b'"artifacts":[]', b'"artifacts":["../../../etc/passwd"]', "is not the name of an artifact"),
        (b'"id":"job_', b'"id":"../_', "is not the id of a job"),
        (b"zwei", b"drei", "are not those that were written"),
    ],
)
async def test_a_foreign_line_is_refused_with_its_number_and_nothing_of_its_job_stays(
    empty: Store, files: ArtifactFiles, tmp_path: Path, old: bytes, new: bytes, words: str
) -> None:
    archive, job_ids = await archive_of_all_kinds(tmp_path)
    assert old in archive
    report = imported(empty, files, archive.replace(old, new, 1))
    [(line, message)] = report.refused
    assert words in message
    begins = archive.split(old)[0].count(b"\n") + 1
    ends = archive.split(b'"record":"job_end"')[0].count(b"\n") + 1
    assert line == (ends if old == b"zwei" else begins)
    assert list(report.imported) == job_ids[1:]
    assert list_of(empty) == job_ids[1:]


async def test_what_was_brought_of_artifacts_goes_with_a_refused_job(
    empty: Store, files: ArtifactFiles, tmp_path: Path
) -> None:
    archive, job_ids = await archive_of_all_kinds(tmp_path)
    start, _, rest = archive.rpartition(b'"event":"item_started"')
    report = imported(empty, files, start + b'"event":"nothing"' + rest)
    assert len(report.refused) == 1
    [sha256] = re.findall(rb'"artifacts":\["([0-9a-f]+)', archive)
    broken = archive.replace(b'"sha256":"%b","data":"iVBO' % sha256, b'"sha256":"%b","data":"iVBP' % sha256, 1)
    again = MemoryStore()
    elsewhere = ArtifactFiles(tmp_path / "elsewhere")
    report = imported(again, elsewhere, broken)
    assert [message for _, message in report.refused] == [
        f"the bytes before are not those of artifact {sha256.decode()}"
    ]
    late = archive.replace(
        b'{"record":"job_end","job_id":"%b"' % job_ids[3].encode(), b'{"record":"job_end","job_id":"x"'
    )
    report = imported(again, elsewhere, late)
    assert len(report.refused) == 1
    assert job_ids[3] not in list_of(again)
    assert [path for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()] == []


async def test_a_disk_that_is_full_ends_the_import_and_keeps_the_jobs_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, job_ids = await archive_of_all_kinds(tmp_path)
    store = open_sqlite_store(tmp_path / "new" / "engine.db")
    files = ArtifactFiles(tmp_path / "new" / "artifacts")

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(StoreFullError):
            imported(store, files, archive)
    assert list_of(store) == job_ids[:3]
    assert left_of(files, tmp_path) == []
    assert imported(store, files, archive).present == job_ids[:3]
    assert list_of(store) == job_ids
    store.close()


async def test_imported_jobs_are_as_old_as_they_are_but_not_of_the_future(tmp_path: Path) -> None:
    archive, _ = await archive_of_all_kinds(tmp_path)
    store = MemoryStore()
    files = ArtifactFiles(tmp_path / "new" / "artifacts")
    report = imported(store, files, archive)
    ended = [one.finished_at for one in store.finished_jobs(limit=10)]
    assert ended == sorted(to_stamp(seconds) for seconds in report.imported.values())
    past = MemoryStore()
    imported(past, files, archive, now=1_000_000_000.0)
    assert {one.finished_at for one in past.finished_jobs(limit=10)} == {to_stamp(1_000_000_000.0)}


async def test_memory_does_not_grow_with_the_number_of_events_and_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "SPOOL_BYTES", 64 * 1024)
    store = open_sqlite_store(tmp_path / "old" / "engine.db")
    tokens = ["x" * 15_000] * 400
    async with open_setting(store=store, registry=ScriptedRegistry({"much": [Script(tokens=tokens)]})) as setting:
        for _ in range(4):
            await setting.run([llm("a", "much")])
    files = ArtifactFiles(tmp_path / "artifacts")
    tracemalloc.start()
    try:
        with (tmp_path / "jobs.ndjson").open("wb") as out:
            export_jobs(store, files, finished_jobs(store, JobFilter()), out)
        new = open_sqlite_store(tmp_path / "new" / "engine.db")
        with (tmp_path / "jobs.ndjson").open("rb") as source:
            assert len(import_jobs(new, files, source, name="jobs.ndjson", now=NOW).imported) == 4
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size = (tmp_path / "jobs.ndjson").stat().st_size
    longest = max(len(line) for line in (tmp_path / "jobs.ndjson").read_bytes().splitlines())
    assert peak < 8 * longest < size
    new.close()
    store.close()


async def test_a_store_is_read_beside_the_one_that_writes_it_and_never_changed(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be used"):
        open_sqlite_store_to_read(tmp_path / "engine.db")
    store = open_sqlite_store(tmp_path / "engine.db")
    await make_jobs(store, tmp_path / "artifacts")
    reader = open_sqlite_store_to_read(tmp_path / "engine.db")
    assert list_of(reader) == list_of(store)
    with pytest.raises(StoreError, match="readonly"):
        reader.write([DeleteJobs([JobId(list_of(store)[0])])])
    reader.close()
    store._writer.pragma("user_version", 99)
    store.close()
    with pytest.raises(StoreError, match="it is of schema 99"):
        open_sqlite_store_to_read(tmp_path / "engine.db")
