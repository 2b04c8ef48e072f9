"""A store whose commits take seconds: nothing is told before it is stored, and nothing else waits for it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import trio
from tests.api_setting import ApiSetting, body_of, open_api
from tests.engine_setting import Script, ScriptedRegistry, llm

from pipeline_engine.models import JobId
from pipeline_engine.store.base import Operation
from pipeline_engine.store.sqlite import open_sqlite_store
from pipeline_engine.store.writer import MAX_PENDING_BYTES

PATIENCE = 10.0  # seconds
AT_ONCE = 2.0  # seconds, on a machine that is busy otherwise
TOKEN = "x" * 20_000
SCRIPTS = {"slow": [Script(first=1000)], "much": [Script(tokens=[TOKEN] * 1000)]}


class Gate:
    """While it is shut, commits do not end."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.met = threading.Event()

    def shut(self) -> None:
        self.met.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def pass_through(self) -> None:
        self.met.set()
        self._open.wait()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def api(tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiSetting]:
    store = open_sqlite_store(tmp_path / "engine.db")
    write = store.write

    def write_slowly(operations: Sequence[Operation]) -> None:
        gate.pass_through()
        write(operations)

    monkeypatch.setattr(store, "write", write_slowly)
    async with open_api(store=store, registry=ScriptedRegistry(SCRIPTS)) as setting:
        try:
            yield setting
        finally:
            gate.open()
    store.close()


async def until_met(gate: Gate) -> None:
    assert await trio.to_thread.run_sync(gate.met.wait, PATIENCE)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while True:
            await trio.sleep(0.01)
            if condition():
                return


async def test_nothing_is_acknowledged_before_its_commit_while_reads_and_cancels_go_on(
    api: ApiSetting, gate: Gate, nursery: trio.Nursery
) -> None:
    done = await api.run([llm("a")])
    running = await api.submit([llm("a", "slow")])
    registry = api.setting.registry
    assert isinstance(registry, ScriptedRegistry)
    await until(lambda: registry.under_way == 1)
    gate.shut()
    answers: dict[str, int] = {}

    async def ask(name: str, target: str, body: object) -> None:
        answers[name] = (await api.ask("POST", target, body)).status

    nursery.start_soon(ask, "submit", "/v1/jobs", body_of([llm("a")]))
    await until_met(gate)
    nursery.start_soon(ask, "cancel", f"/v1/jobs/{running['id']}/cancel", {})
    with trio.fail_after(AT_ONCE):
        assert (await api.ask("GET", f"/v1/jobs/{done['id']}")).json["job"]["status"] == "succeeded"
        assert len((await api.ask("GET", "/v1/jobs")).json["jobs"]) == 2
        assert len(await api.events(done["id"])) == done["last_seq"]
        await until(lambda: registry.under_way == 0)  # the provider is let go, whenever that can be stored
    assert (await api.ask("GET", f"/v1/jobs/{running['id']}")).json["job"]["status"] == "running"
    assert answers == {}
    gate.open()
    await until(lambda: len(answers) == 2)
    assert answers == {"submit": 202, "cancel": 200}
    assert (await api.ask("GET", f"/v1/jobs/{running['id']}")).json["job"]["status"] == "cancelled"


async def test_a_provider_that_is_faster_than_the_store_waits_for_it(api: ApiSetting, gate: Gate) -> None:
    job = await api.submit([llm("a", "much")])
    writer = api.setting.writer
    gate.shut()
    await until_met(gate)
    waiting = -1
    with trio.fail_after(PATIENCE):
        while writer._pending_bytes != waiting:
            waiting = writer._pending_bytes
            await trio.sleep(0.2)
    assert MAX_PENDING_BYTES < waiting < MAX_PENDING_BYTES + 20 * len(TOKEN)  # of the 20 MB that the model has sent
    gate.open()
    with trio.fail_after(PATIENCE):
        assert (await api.setting.engine.wait(JobId(job["id"]))).status == "succeeded"
