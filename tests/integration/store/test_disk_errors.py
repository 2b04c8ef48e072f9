"""A disk that is full or fails: new work is refused, reads go on, nothing is lost, and it recovers by itself."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest
import trio
from tests.api_setting import ApiSetting, body_of, open_api
from tests.disks import FailingDisk, use_disk
from tests.engine_setting import Script, llm, names

from pipeline_engine.models import JobId
from pipeline_engine.store import wal
from pipeline_engine.store.sqlite import open_sqlite_store

PATIENCE = 10.0  # seconds; the store is tried again within a fraction of one
SLOW = Script(tokens=("a", "b", "c"), delay=0.15)


async def until_accepted(api: ApiSetting) -> str:
    """Submit until the store takes it, as a client would that was told to try again later."""
    with trio.fail_after(PATIENCE):
        while True:
            answer = await api.ask("POST", "/v1/jobs", body_of([llm("a")]))
            if answer.status == 202:
                return str(answer.json["job"]["id"])
            await trio.sleep(0.05)


async def until_finished(api: ApiSetting, job_id: str) -> None:
    with trio.fail_after(PATIENCE):
        await api.setting.engine.wait(JobId(job_id))
    events = await api.events(job_id)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert names(events)[-2:] == ["job_completed", "stream_finished"]
    assert names(events).count("job_completed") == 1


@pytest.mark.parametrize(
    ("operation", "suffix", "error", "status", "code"),
    [
        ("write", "-wal", apsw.FullError, 507, "store_full"),
        ("write", "-wal", apsw.IOError, 503, "unavailable"),
        ("sync", "-wal", apsw.IOError, 503, "unavailable"),
    ],
)
async def test_a_commit_that_fails_is_never_acknowledged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    suffix: str,
    error: type[apsw.Error],
    status: int,
    code: str,
) -> None:
    disk = FailingDisk(operation, suffix)
    accepted: list[str] = []
    monkeypatch.setattr(wal, "CHECKPOINT_PAGES", 5)
    with use_disk(disk, monkeypatch):
        store = open_sqlite_store(tmp_path / "engine.db", durability="full")
        async with open_api(store=store, scripts={"slow": [SLOW]}) as api:
            done = await api.run([llm("a")])
            running = await api.submit([llm("a", "slow")])
            accepted += [done["id"], running["id"]]
            disk.error = error
            for _ in range(3):
                answer = await api.ask("POST", "/v1/jobs", body_of([llm("a")]))
                assert (answer.status, answer.error["code"]) == (status, code)
            assert disk.failures > 0
            # Longer than the running job would take: it must not be shown as finished while that cannot be stored.
            await trio.sleep(0.7)
            assert (await api.ask("GET", "/health/ready")).status == status
            assert (await api.ask("GET", f"/v1/jobs/{done['id']}")).json["job"]["status"] == "succeeded"
            assert (await api.ask("GET", f"/v1/jobs/{running['id']}")).json["job"]["status"] != "succeeded"
            assert len(await api.events(done["id"])) > 5
            assert len((await api.ask("GET", "/v1/jobs")).json["jobs"]) == 2
            disk.error = None
            accepted.append(await until_accepted(api))
            assert (await api.ask("GET", "/health/ready")).status == 200
            for job_id in accepted:
                await until_finished(api, job_id)
        store.close()
    survivor = open_sqlite_store(tmp_path / "engine.db")
    assert survivor._writer.pragma("integrity_check") == "ok"
    for job_id in accepted:
        head = survivor.head(JobId(job_id))
        assert head is not None
        assert head.is_final
    assert survivor.count_finished() == len(accepted)
    survivor.close()


@pytest.mark.parametrize("operation", ["write", "sync"])
async def test_a_checkpoint_that_fails_costs_nothing_that_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    disk = FailingDisk(operation, "engine.db")
    monkeypatch.setattr(wal, "CHECKPOINT_PAGES", 5)
    with use_disk(disk, monkeypatch):
        store = open_sqlite_store(tmp_path / "engine.db")
        async with open_api(store=store) as api:
            accepted = [(await api.run([llm("a")]))["id"]]
            disk.error = apsw.IOError
            for _ in range(5):
                answer = await api.ask("POST", "/v1/jobs", body_of([llm("a")]))
                if answer.status == 202:
                    accepted.append(answer.json["job"]["id"])
                else:
                    assert answer.status == 503
                assert (await api.ask("GET", f"/v1/jobs/{accepted[0]}")).status == 200
            assert disk.failures > 0
            disk.error = None
            accepted.append(await until_accepted(api))
            for job_id in accepted:
                await until_finished(api, job_id)
        store.close()
    survivor = open_sqlite_store(tmp_path / "engine.db")
    assert survivor._writer.pragma("integrity_check") == "ok"
    assert survivor.count_finished() == len(accepted)
    survivor.close()
