"""`make chaos`: breaks what can break, and writes docs/reliability.md."""

from __future__ import annotations

import argparse
import random
import resource
import socket
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import trio

from benchmarks.http import Client
from benchmarks.measures import TOKEN, Figures, count_lines, job, rate, step
from benchmarks.processes import ROOT, Daemon, run_daemon, run_script
from benchmarks.provider import now_us
from benchmarks.storm import CLIENTS, Storm

STUCK, LIVE = 500, 50
BURST = 10_000  # tokens: more than the buffers of a connection hold
STEADY_BYTES = 16 * 1024  # a longer piece is of the burst, or the item that repeats all tokens
GRACE_S = 1


async def break_upstreams(daemon: Daemon, count: int) -> list[str]:
    """Answers that are reset, stall or turn into garbage after any number of tokens."""
    api, chance = Client(daemon.port), random.Random(3)
    faults: Counter[str] = Counter()
    codes: Counter[str] = Counter()

    async def one() -> None:
        end = chance.choice(["reset", "stall", "garbage"])
        more = {"retry": {"max_attempts": 2, "backoff_s": 0.01}}
        one = step("a", f"tokens={chance.randrange(30)},end={end}", **more)
        one["provider_override"] |= {"idle_timeout_s": 0.3, "first_token_timeout_s": 0.3}
        answer = await api.call("POST", "/v1/jobs", job([one], mode="sync"))
        done = answer["job"]
        path = f"/v1/jobs/{done['id']}/stream"
        async with api.open("GET", path) as stream:
            text = await stream.read()
        codes[f"{done['error']['code'] if done['error'] else 'succeeded'}"] += 1
        faults["not one terminal event"] += text.count(b'"event":"job_failed"') != 1
        faults["too many attempts"] += done["step_executions"][0]["attempts"] > 2

    await rate(count, one)
    found = ", ".join(f"{number} × `{code}`" for code, number in codes.most_common())
    return [
        (
            f"- {count} answers that were reset, stalled or turned into garbage at random tokens: "
            f"{faults['not one terminal event']} jobs without exactly one terminal event, {faults['too many attempts']} with "
            f"more attempts than `retry` allows; {found}."
        )
    ]


async def stick(port: int, job_id: str) -> trio.socket.SocketType:
    """A follower that asks and then never reads."""
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect(("127.0.0.1", port))
    await sock.send(f"GET /v1/jobs/{job_id}/stream HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode())
    return sock


async def crowd(daemon: Daemon) -> list[str]:
    """Many followers that do not read beside some that do."""
    api = Client(daemon.port)
    burst = step("burst", f"tokens={BURST},first=2500")
    steady = step("steady", "tokens=100,first=6000,every=20", depends_on=["burst"])
    answer = await api.call("POST", "/v1/jobs", job([burst, steady]))
    job_id = answer["job"]["id"]
    path = f"/v1/jobs/{job_id}/stream"
    memory = daemon.memory_kib()
    peak = memory
    lags = Figures()
    counts: list[int] = []
    with ExitStack() as stack:
        for _ in range(STUCK):
            stack.callback((await stick(daemon.port, job_id)).close)

        async def live() -> None:
            count = 0
            async with api.open("GET", path) as answer:
                async for piece in answer.pieces():
                    arrived = now_us()
                    count += piece.count(b'"event":"provider_chunk"')
                    if len(piece) < STEADY_BYTES:
                        steady_part = piece.partition(b'"step_id":"steady"')[2]  # before it may be the end of the burst
                        lags.values += [(arrived - int(made)) / 1000 for made in TOKEN.findall(steady_part)]
            counts.append(count)

        async with trio.open_nursery() as nursery:
            for _ in range(LIVE):
                nursery.start_soon(live)
            while len(counts) < LIVE:
                await trio.sleep(0.1)
                peak = max(peak, daemon.memory_kib())
        whole = await count_lines(api, path)
        running = await api.call("POST", "/v1/jobs", job([step("a", "tokens=1,first=60000")]))
        assert running["job"]["status"] == "queued"
        stopped_s = await trio.to_thread.run_sync(daemon.stop)
    return [
        (
            f"- {STUCK} followers that never read and {LIVE} that do, on one job of {whole:,} events: the live ones got "
            f"{min(counts):,} to {max(counts):,} of {BURST + 100:,} tokens, p99 {lags.p99:.1f} ms behind (median {lags.median:.1f}); "
            f"the daemon grew by {(peak - memory) / 1024:.0f} MiB; with all of them connected and a job running it stopped "
            f"in {stopped_s:.1f} s (grace {GRACE_S} s)."
        )
    ]


async def run_out_of_files(daemon: Daemon) -> list[str]:
    """More connections than the daemon may have open."""
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (64, 64))
    socks: list[socket.socket] = []
    for _ in range(150):
        sock = socket.socket()
        sock.settimeout(5)
        sock.connect(("127.0.0.1", daemon.port))
        socks.append(sock)
    await trio.sleep(0.5)
    cpu_s = daemon.cpu_s()
    await trio.sleep(3)
    share = (daemon.cpu_s() - cpu_s) / 3
    for sock in socks:
        sock.close()
    began = time.monotonic()
    answer = None
    while answer is None:
        try:
            with trio.fail_after(20):
                answer = await Client(daemon.port).call("POST", "/v1/jobs", job([step("a", "tokens=1")], mode="sync"))
        except (OSError, RuntimeError):
            await trio.sleep(0.1)
    return [
        (
            f"- 150 connections with 64 file descriptors: {share:.1%} of a core while they waited; a job "
            f"{answer['job']['status']} {time.monotonic() - began:.1f} s after they had left."
        )
    ]


async def queue_many(daemon: Daemon, *, queued: int, total: int) -> list[str]:
    """Many jobs at once, and then many one after the other."""
    api = Client(daemon.port)
    request = job([step("a", "tokens=4", export=True)])
    waits = Figures()
    statuses: Counter[str] = Counter()

    async def one() -> None:
        began = time.monotonic()
        answer = await api.call("POST", "/v1/jobs", {**request, "mode": "sync"})
        statuses[answer["job"]["status"]] += 1
        waits.values.append(time.monotonic() - began)

    async with trio.open_nursery() as nursery:
        for _ in range(queued):
            nursery.start_soon(one)
    words = ", ".join(f"{count} {status}" for status, count in statuses.items())
    lines = [f"- {queued:,} jobs at once: {words}; the last one ended after {max(waits.values):.1f} s."]
    await rate(total // 5, one)
    early = daemon.memory_kib()
    await rate(total - total // 5, one)
    late = daemon.memory_kib()
    return [
        *lines,
        f"- {total:,} jobs, 64 at a time: {early / 1024:.0f} MiB after a fifth of them, {late / 1024:.0f} MiB at the end.",
    ]


def storm_lines(storm: Storm) -> list[str]:
    ends = ", ".join(f"{count} {status}" for status, count in storm.statuses.most_common())
    return [
        (
            f"- {storm.kills} kill -9 at random moments, {storm.kills_while_starting} of them while the daemon was "
            f"starting, under {CLIENTS} clients: {len(storm.accepted):,} jobs acknowledged, {ends}; "
            f"{len(storm.shown):,} followed across the kills; {len(storm.faults)} faults. The longest start took "
            f"{storm.longest_start_s:.1f} s.\n  {FAULT}"
        ),
        *(f"  - {fault}" for fault in storm.faults[:20]),
    ]


FAULT = (
    "A fault is a job that was acknowledged and is gone or does not end, a gap or a repeat in `seq`, more or less than "
    "one terminal event, anything after `stream_finished`, a line that a follower was shown and the log does not have, "
    "or a database that fails `PRAGMA integrity_check`."
)

INTRODUCTION = """# Reliability

Written by `make chaos`, which breaks what can break around a daemon on this machine. A small part of the storm of kills
runs with the tests, and so do power loss at some 300 points, a full disk and I/O errors at each kind of write of the
database and of artifacts, commits that do not end, hundreds of followers that read all the time (tests/integration/store),
wall clocks that are set by years (tests/unit/test_retention.py, tests/unit/engine/test_recovery.py), and archives that are
cut or damaged (tests/integration/test_archive.py).
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--upstreams", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    lines: list[str] = []

    def add(found: list[str]) -> None:
        lines.extend(found)
        print("\n".join(found), flush=True)

    with tempfile.TemporaryDirectory() as name, run_script("benchmarks.provider") as port:
        scratch = Path(name)
        with run_daemon(scratch / "upstreams", provider_port=port) as daemon:
            add(trio.run(break_upstreams, daemon, given.upstreams))
        with run_daemon(
            scratch / "crowd", provider_port=port, settings=f"[limits]\nshutdown_grace_s = {GRACE_S}"
        ) as daemon:
            add(trio.run(crowd, daemon))
        with run_daemon(scratch / "files", provider_port=port) as daemon:
            add(trio.run(run_out_of_files, daemon))
        with run_daemon(scratch / "storm", provider_port=port) as daemon:
            storm = Storm(daemon, random.Random(given.seed))
            trio.run(storm.run, given.kills)
            add(storm_lines(storm))
        with run_daemon(scratch / "many", provider_port=port) as daemon:
            add(trio.run(lambda: queue_many(daemon, queued=1000, total=given.jobs)))
    (ROOT / "docs" / "reliability.md").write_text("\n".join([INTRODUCTION, *lines, ""]), encoding="utf-8")
    return 1 if storm.faults else 0


if __name__ == "__main__":
    sys.exit(main())
