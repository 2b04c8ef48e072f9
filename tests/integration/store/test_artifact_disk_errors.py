"""A disk that does not take artifacts: nothing that was paid for is thrown away, nothing refers to what is not there."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from tests.api_setting import ApiSetting, body_of, open_api
from tests.drawing_setting import PNG, DrawingRegistry, drawing
from tests.engine_setting import Json, Script, llm

from pipeline_engine.models import JobId
from pipeline_engine.providers.base import Operation
from pipeline_engine.store.sqlite import SqliteStore, open_sqlite_store

PATIENCE = 10.0  # seconds; the disk is tried again within a fraction of one
FULL = OSError(errno.ENOSPC, "No space left on device")
BROKEN = OSError(errno.EIO, "Input/output error")


class ArtifactDisk:
    """Lets one operation on files of artifacts fail while `error` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: OSError | None = None
        self.operation = "fsync"
        self.failures = 0
        sync, rename, open_file = os.fsync, Path.replace, os.open

        def sync_or_fail(descriptor: int) -> None:
            self._meet("fsync")
            sync(descriptor)

        def rename_or_fail(path: Path, target: Path) -> Path:
            self._meet("rename")
            return rename(path, target)

        def open_or_fail(path: str | Path, flags: int, mode: int = 0o777) -> int:
            if flags & os.O_CREAT:
                self._meet("open")
            return open_file(path, flags, mode)

        monkeypatch.setattr(os, "fsync", sync_or_fail)
        monkeypatch.setattr(Path, "replace", rename_or_fail)
        monkeypatch.setattr(os, "open", open_or_fail)

    def _meet(self, operation: str) -> None:
        if self.error is not None and operation == self.operation:
            self.failures += 1
            raise self.error


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> ArtifactDisk:
    return ArtifactDisk(monkeypatch)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[ApiSetting]:
    store = open_sqlite_store(tmp_path / "engine.db")
    registry = DrawingRegistry({"slow": [Script(first=1000)]})
    async with open_api(store=store, registry=registry, artifacts=tmp_path / "artifacts") as setting:
        yield setting
    store.close()


async def until_it_fails(disk: ArtifactDisk) -> None:
    with trio.fail_after(PATIENCE):
        while True:
            await trio.sleep(0.02)
            if disk.failures >= 2:
                return


async def ended(api: ApiSetting, job_id: str) -> Json:
    with trio.fail_after(PATIENCE):
        await api.setting.engine.wait(JobId(job_id))
    job: Json = (await api.ask("GET", f"/v1/jobs/{job_id}")).json["job"]
    return job


def files_in(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("operation", "error", "status", "code"),
    [
        ("open", FULL, 507, "store_full"),
        ("fsync", FULL, 507, "store_full"),
        ("fsync", BROKEN, 503, "unavailable"),
        ("rename", BROKEN, 503, "unavailable"),
    ],
)
async def test_a_picture_waits_for_the_disk_and_new_jobs_are_refused_meanwhile(
    api: ApiSetting, disk: ArtifactDisk, operation: str, error: OSError, status: int, code: str
) -> None:
    done = await api.run([llm("a")])
    disk.operation, disk.error = operation, error
    job = await api.submit([drawing("p")], ["x"])
    await until_it_fails(disk)
    answer = await api.ask("POST", "/v1/jobs", body_of([llm("a")]))
    assert (answer.status, answer.error["code"]) == (status, code)
    assert f"an artifact cannot be kept: {error.strerror}" in answer.error["message"].replace(
        f" of {len(PNG)} bytes", ""
    )
    assert (await api.ask("GET", "/health/ready")).status == status
    assert (await api.ask("GET", f"/v1/jobs/{done['id']}")).json["job"]["status"] == "succeeded"
    assert (await api.ask("GET", f"/v1/jobs/{job['id']}")).json["job"]["status"] == "running"
    assert (await api.ask("GET", f"/v1/jobs/{job['id']}/checkpoints")).json["checkpoints"] == []
    disk.error = None
    drawn = await ended(api, job["id"])
    assert drawn["status"] == "succeeded"
    picture = await api.ask("GET", drawn["result"]["items"][0]["data"]["artifact"]["url"])
    assert picture.body == PNG
    assert (await api.ask("GET", "/health/ready")).status == 200
    assert isinstance(api.setting.registry, DrawingRegistry)
    assert [call.operation for call in api.setting.registry.calls] == [Operation.CHAT, Operation.IMAGE]


async def test_who_waits_for_the_disk_can_be_cancelled_and_the_next_job_runs(
    api: ApiSetting, disk: ArtifactDisk, tmp_path: Path
) -> None:
    disk.error = FULL
    job = await api.submit([drawing("p")], ["x"])
    await until_it_fails(disk)
    with trio.fail_after(PATIENCE):
        answer = await api.ask("POST", f"/v1/jobs/{job['id']}/cancel")
    assert answer.json["job"]["status"] == "cancelled"
    assert (await api.ask("GET", "/health/ready")).status == 200
    assert files_in(tmp_path) == []
    disk.error = None
    assert (await api.run([drawing("p")], ["x"]))["status"] == "succeeded"


async def test_the_time_of_the_step_bounds_the_wait_and_nothing_refers_to_what_is_not_there(
    api: ApiSetting, disk: ArtifactDisk, tmp_path: Path
) -> None:
    disk.error = FULL
    job = await api.submit([drawing("p", timeout_s=0.5)], ["x"])
    failed = await ended(api, job["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "timeout")
    assert failed["error"]["details"]["step_id"] == "p"
    store = api.setting.store
    assert isinstance(store, SqliteStore)
    assert store.artifacts_in_use() == set()
    assert b"artifact" not in b"".join(event.line for event in store.read_events(JobId(job["id"])))
    assert files_in(tmp_path) == []
    assert (await api.run([llm("a")]))["status"] == "succeeded"
