"""kill -9 at random moments under load, and the proof that nothing which was acknowledged or shown was lost."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import trio

from benchmarks.http import Client
from benchmarks.measures import job, step
from benchmarks.processes import Daemon

CLIENTS = 4
EVERY_SEVENTH = 7  # of the kills comes while the daemon is still starting
LOST = (OSError, RuntimeError, trio.BrokenResourceError, trio.ClosedResourceError)
TERMINAL = {"job_completed", "job_failed", "job_cancelled"}


@dataclass(slots=True)
class Storm:
    """What the clients were told: the jobs that were accepted, and each line that a follower received."""

    daemon: Daemon
    random: random.Random
    kills: int = 0
    kills_while_starting: int = 0
    accepted: list[str] = field(default_factory=list)
    shown: dict[str, list[bytes]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    longest_start_s: float = 0.0

    async def run(self, kills: int) -> None:
        async with trio.open_nursery() as clients:
            for number in range(CLIENTS):
                clients.start_soon(self._submit_and_follow, number)
            for _ in range(kills):
                await trio.sleep(self.random.uniform(0.02, 0.6))
                await self._kill_and_start()
            clients.cancel_scope.cancel()
        await self._check()

    async def _kill_and_start(self) -> None:
        self.daemon.kill()
        self.kills += 1
        if self.kills % EVERY_SEVENTH == 0:
            self.daemon.launch()
            await trio.sleep(self.random.uniform(0.1, 0.9))
            self.daemon.kill()
            self.kills += 1
            self.kills_while_starting += 1
        self.longest_start_s = max(self.longest_start_s, await trio.to_thread.run_sync(self.daemon.start))

    async def _submit_and_follow(self, number: int) -> None:
        with closing(Client(self.daemon.port)) as api:
            await self._load(api, number)

    async def _load(self, api: Client, number: int) -> None:
        slow = step("a", "tokens=6,first=5,every=8", export=True)
        request = job([slow, step("b", "tokens=2", depends_on=["a"])])
        while True:
            try:
                answer = await api.call("POST", "/v1/jobs", request)
                job_id = answer["job"]["id"]
                self.accepted.append(job_id)
                if number % 2:
                    await self._follow(api, job_id)
            except LOST:
                api.close()
            await trio.sleep(0.03)

    async def _follow(self, api: Client, job_id: str) -> None:
        """Follow as a client does that reconnects; gives up when the storm is over."""
        lines = self.shown.setdefault(job_id, [])
        while not lines or b'"stream_finished"' not in lines[-1]:
            try:
                async with api.open("GET", f"/v1/jobs/{job_id}/stream?after_seq={len(lines)}") as answer:
                    async for batch in answer.lines():
                        lines += [line for line in batch if line.startswith(b'{"seq"')]
            except LOST:
                api.close()
                await trio.sleep(0.03)

    # the proof

    async def _check(self) -> None:
        with closing(Client(self.daemon.port)) as api:
            for job_id in self.accepted:
                with trio.move_on_after(60) as patience:
                    await self._check_job(api, job_id)
                if patience.cancelled_caught:
                    self.faults.append(f"{job_id} did not end")
        self.daemon.stop()
        with closing(sqlite3.connect(self.daemon.data / "engine.db")) as database:
            [integrity] = database.execute("PRAGMA integrity_check").fetchone()
        if integrity != "ok":
            self.faults.append(f"integrity_check: {integrity}")

    async def _check_job(self, api: Client, job_id: str) -> None:
        try:
            async with api.open("GET", f"/v1/jobs/{job_id}/stream") as answer:
                stored = (await answer.read()).split(b"\n")[:-1]
        except LOST as exc:
            self.faults.append(f"{job_id} was acknowledged and cannot be followed: {exc}")
            return
        if answer.status != 200:
            self.faults.append(f"{job_id} was acknowledged and is gone: {answer.status}")
            return
        shown = self.shown.get(job_id, [])
        if stored[: len(shown)] != shown:
            self.faults.append(f"{job_id}: a follower was shown what the log does not have")
        events: list[dict[str, Any]] = [json.loads(line) for line in stored]
        names = [event["event"] for event in events]
        if [event["seq"] for event in events] != list(range(1, len(events) + 1)):
            self.faults.append(f"{job_id}: seq has gaps or repeats")
        if sum(name in TERMINAL for name in names) != 1 or names.count("stream_finished") != 1:
            self.faults.append(f"{job_id}: not one terminal event, but {names}")
        elif names[-1] != "stream_finished" or names[-2] not in TERMINAL:
            self.faults.append(f"{job_id}: {names[-2:]} at the end")
        else:
            self.statuses[events[-2]["data"]["status"]] += 1
