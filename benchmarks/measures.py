"""The measurements: each gives its figures beside those of a baseline from the same minutes."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from benchmarks.http import Client
from benchmarks.processes import Daemon
from benchmarks.provider import now_us
from pipeline_engine.models import JobId, JobStatus
from pipeline_engine.store.base import EventRecord, JobChange, NewJob
from pipeline_engine.store.sqlite import open_sqlite_store

TOKEN = re.compile(rb"<(\d+)> ")
IN_FLIGHT = 64
STORED_JOBS = 100_000


@dataclass(slots=True)
class Figures:
    """Values of one measure, in its unit."""

    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def part(self, share: float) -> float:
        """The value below which that share of all lies."""
        return sorted(self.values)[min(len(self.values) - 1, int(share * len(self.values)))]

    @property
    def p99(self) -> float:
        return self.part(0.99)

    def text(self, unit: str) -> str:
        """The median, and the lowest and the highest value if there are several."""
        gap = "" if unit.startswith("/") else " "
        spread = f" ({_rounded(min(self.values))}–{_rounded(max(self.values))})" if len(self.values) > 1 else ""
        return f"{_rounded(self.median)}{gap}{unit}{spread}"

    def p99_text(self, unit: str) -> str:
        return f"{_rounded(self.p99)} {unit} (median {_rounded(self.median)})"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


@dataclass(slots=True)
class Bench:
    """The daemon, the provider and the floor, as their clients see them."""

    daemon: Daemon
    api: Client
    provider: Client
    floor: Client


def step(step_id: str, model: str, **more: Any) -> dict[str, Any]:
    override = {"default_model": model}
    return {"id": step_id, "kind": "llm", "provider_profile_id": "p", "provider_override": override, **more}


def job(steps: Sequence[dict[str, Any]], contents: Sequence[str] = ("hello",), **more: Any) -> dict[str, Any]:
    sources = [{"kind": "note", "label": "s", "content": content} for content in contents]
    return {"pipeline": {"type": "bench.v1", "version": "1", "steps": steps}, "input": {"sources": sources}, **more}


def chat(model: str) -> dict[str, Any]:
    return {"model": model, "stream": True, "messages": [{"role": "user", "content": "hello"}]}


async def run_sync(bench: Bench, request: dict[str, Any]) -> float:
    """A job from its submission to its answer, in milliseconds."""
    began = now_us()
    answer = await bench.api.call("POST", "/v1/jobs", {**request, "mode": "sync"})
    if answer["job"]["status"] != "succeeded":
        raise RuntimeError(f"a job failed: {answer['job']['error']}")
    return (now_us() - began) / 1000


async def read_all(client: Client, path: str, value: Any) -> float:
    began = now_us()
    async with client.open("POST", path, value) as answer:
        await answer.read()
    return (now_us() - began) / 1000


async def call_directly(bench: Bench, model: str) -> float:
    """The same call without the daemon, in milliseconds."""
    return await read_all(bench.provider, "/v1/chat/completions", chat(model))


async def latencies(bench: Bench, *, rounds: int) -> dict[str, Figures]:
    """Milliseconds of a job of one step, of a chain of three, of the bare call, and of the floor of both, in turns."""
    one = job([step("a", "tokens=8", export=True)])
    three = job(
        [step("a", "tokens=8"), step("b", "tokens=8", depends_on=["a"]), step("c", "tokens=8", depends_on=["b"])]
    )
    found = {name: Figures() for name in ("one", "three", "direct", "floor_one", "floor_three")}
    for _ in range(rounds):
        found["one"].values.append(await run_sync(bench, one))
        found["three"].values.append(await run_sync(bench, three))
        found["direct"].values.append(await call_directly(bench, "tokens=8"))
        found["floor_one"].values.append(await read_all(bench.floor, "/job", chat("tokens=8")))
        found["floor_three"].values.append(await read_all(bench.floor, "/job?calls=3", chat("tokens=8")))
    return found


async def rate(count: int, one: Callable[[], Awaitable[object]]) -> float:
    """How many a second, IN_FLIGHT of them at a time."""
    left = count

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await one()

    began = time.monotonic()
    async with trio.open_nursery() as nursery:
        for _ in range(IN_FLIGHT):
            nursery.start_soon(work)
    return count / (time.monotonic() - began)


async def throughputs(bench: Bench, *, rounds: int, count: int) -> dict[str, Figures]:
    """Jobs a second, bare calls a second, and requests of the floor a second."""
    request = job([step("a", "tokens=8", export=True)])
    found = {name: Figures() for name in ("jobs", "direct", "floor", "cpu_ms")}
    for _ in range(rounds):
        cpu_s = bench.daemon.cpu_s()
        found["jobs"].values.append(await rate(count, lambda: run_sync(bench, request)))
        found["cpu_ms"].values.append((bench.daemon.cpu_s() - cpu_s) * 1000 / count)
        found["direct"].values.append(await rate(count, lambda: call_directly(bench, "tokens=8")))
        found["floor"].values.append(await rate(count, lambda: read_all(bench.floor, "/job", chat("tokens=8"))))
    return found


async def first_token(client: Client, path: str, value: Any) -> float:
    """Milliseconds to the first token; returns at the end of the answer."""
    began = now_us()
    first = 0.0
    async with client.open("POST", path, value) as answer:
        async for piece in answer.pieces():
            if not first and TOKEN.search(piece):
                first = (now_us() - began) / 1000
    return first


async def first_tokens(bench: Bench, *, rounds: int) -> dict[str, Figures]:
    """Milliseconds to the first token: of a job, of the bare call, and of the floor, in turns."""
    model = "tokens=100,first=20,every=20"
    found = {name: Figures() for name in ("job", "direct", "floor")}
    for _ in range(rounds):
        request = job([step("a", model, export=True)])
        found["job"].values.append(await first_token(bench.api, "/v1/jobs?stream=true", request))
        found["direct"].values.append(await first_token(bench.provider, "/v1/chat/completions", chat(model)))
        found["floor"].values.append(await first_token(bench.floor, "/stream", chat(model)))
    return found


async def read_lags(client: Client, method: str, path: str, value: Any, lags: Figures) -> None:
    """For how many milliseconds each token was on its way."""
    async with client.open(method, path, value) as answer:
        async for piece in answer.pieces():
            arrived = now_us()
            if b"provider_chunk" in piece or b"chat.completion" in piece:
                new = piece.partition(b'"item_completed"')[0]  # the item repeats all tokens
                lags.values += [(arrived - int(made)) / 1000 for made in TOKEN.findall(new)]


async def submit(bench: Bench, request: dict[str, Any]) -> str:
    answer = await bench.api.call("POST", "/v1/jobs", request)
    return str(answer["job"]["id"])


async def follower_lags(bench: Bench, *, followers: int) -> tuple[Figures, Figures, Figures]:
    """Token to follower: through the daemon, through the floor, and to as many clients that call the provider."""
    model = "tokens=50,first=500,every=20"
    through, floor, direct = Figures(), Figures(), Figures()
    job_id = await submit(bench, job([step("a", model, export=True)]))
    async with trio.open_nursery() as nursery:
        for _ in range(followers):
            nursery.start_soon(read_lags, bench.api, "GET", f"/v1/jobs/{job_id}/stream", None, through)
    relay = await bench.floor.call("POST", "/relay", chat(model))
    async with trio.open_nursery() as nursery:
        for _ in range(followers):
            nursery.start_soon(read_lags, bench.floor, "GET", f"/relay/{relay}", None, floor)
    async with trio.open_nursery() as nursery:
        for _ in range(followers):
            nursery.start_soon(read_lags, bench.provider, "POST", "/v1/chat/completions", chat(model), direct)
    return through, floor, direct


async def count_lines(client: Client, path: str) -> int:
    count = 0
    async with client.open("GET", path) as answer:
        async for piece in answer.pieces():
            count += piece.count(b"\n")
    return count


async def event_rate(bench: Bench, *, tokens: int, followers: int) -> tuple[float, float]:
    """Events a second that are stored and delivered, to all followers together; and tokens a second directly."""
    model = f"tokens={tokens},first=300"
    job_id = await submit(bench, job([step("a", model)]))
    began = time.monotonic() + 0.3
    counts: list[int] = []

    async def follow() -> None:
        counts.append(await count_lines(bench.api, f"/v1/jobs/{job_id}/stream"))

    async with trio.open_nursery() as nursery:
        for _ in range(followers):
            nursery.start_soon(follow)
    took = time.monotonic() - began
    if min(counts) < tokens:
        raise RuntimeError(f"a follower got {min(counts)} events of {tokens}")
    direct = await call_directly(bench, f"tokens={tokens}")
    return sum(counts) / took, tokens / direct * 1000


async def floor_fanout_ms(bench: Bench) -> float:
    return await read_all(bench.floor, "/fanout?calls=50", chat("tokens=8,first=200"))


async def fanout_ms(bench: Bench, *, at_once: int | None) -> float:
    limit = {} if at_once is None else {"max_concurrency": at_once}
    one = step("a", "tokens=8,first=200", mode="fanout", export=True, **limit)
    return await run_sync(bench, job([one], ["x"] * 50))


async def map_rate(bench: Bench, *, items: int) -> float:
    """Items a second of a map step in one job, from its submission to its answer."""
    config = {"map": "identity", "split": {"by": "lines"}}
    one = {"id": "m", "kind": "map", "mode": "fanout", "config": config}
    took_ms = await run_sync(bench, job([one], ["\n".join(["a line of a log, as they are"] * items)]))
    return items / took_ms * 1000


async def cancellations(bench: Bench, *, rounds: int) -> dict[str, Figures]:
    """Milliseconds from POST cancel to the closed connection, to the terminal event, and to the answer."""
    found = {name: Figures() for name in ("closed", "event", "answer")}
    for _ in range(rounds):
        closed_before = len(await bench.provider.call("GET", "/closed"))
        job_id = await submit(bench, job([step("a", "tokens=1,first=8000")]))
        seen = Figures()

        async def follow(path: str = f"/v1/jobs/{job_id}/stream", seen: Figures = seen) -> None:
            async with bench.api.open("GET", path) as answer:
                async for piece in answer.pieces():
                    if b'"job_cancelled"' in piece:
                        seen.values.append(now_us())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await trio.sleep(0.1)
            began = now_us()
            await bench.api.call("POST", f"/v1/jobs/{job_id}/cancel", {"reason": "bench"})
            found["answer"].values.append((now_us() - began) / 1000)
        found["event"].values.append((seen.values[0] - began) / 1000)
        await trio.sleep(0.05)
        closed = await bench.provider.call("GET", "/closed")
        if len(closed) == closed_before:
            raise RuntimeError("a connection to the provider is still open 50 ms after the job was cancelled")
        found["closed"].values.append((closed[-1] - began) / 1000)
    return found


async def idle(bench: Bench, *, seconds: float) -> float:
    """The share of a core that the daemon takes while nothing happens, in percent."""
    cpu_s = bench.daemon.cpu_s()
    await trio.sleep(seconds)
    return (bench.daemon.cpu_s() - cpu_s) / seconds * 100


async def follower_kib(bench: Bench, *, followers: int) -> float:
    """What each follower of a job adds to the daemon's memory."""
    job_id = await submit(bench, job([step("a", "tokens=1,first=60000")]))
    await trio.sleep(0.3)
    before = bench.daemon.memory_kib()
    async with trio.open_nursery() as nursery:
        for _ in range(followers):
            nursery.start_soon(count_lines, bench.api, f"/v1/jobs/{job_id}/stream")
        await trio.sleep(2)
        after = bench.daemon.memory_kib()
        await bench.api.call("POST", f"/v1/jobs/{job_id}/cancel", {})
    return (after - before) / followers


def fill_store(directory: Path, count: int = STORED_JOBS) -> None:
    """A data directory that holds so many finished jobs."""
    directory.mkdir(parents=True)
    store = open_sqlite_store(directory / "engine.db")
    summary = (
        b'{"id":"job_%06d","pipeline_type":"bench.v1","status":"succeeded","created_at":"2026-01-01T00:00:00.000000Z"}'
    )
    names = ("job_queued", "job_started", "step_completed", "job_completed", "stream_finished")
    for start in range(0, count, 1000):
        changes = []
        for number in range(start, min(start + 1000, count)):
            events = [EventRecord(seq, name, b"x" * 300 + b"\n") for seq, name in enumerate(names, 1)]
            new = NewJob(pipeline_type="bench.v1", priority=0, labels={}, created_at="", definition=b"{}")
            job_id = JobId(f"job_{number:06}")
            text = summary % number
            changes.append(JobChange(job_id=job_id, new=new, events=events, status=JobStatus.QUEUED, job=text))
            changes.append(JobChange(job_id=job_id, status=JobStatus.SUCCEEDED))
        store.write(changes)
    store.close()
