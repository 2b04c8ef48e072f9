"""`make bench`: measures, and writes docs/performance.md."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import trio

from benchmarks.http import Client
from benchmarks.measures import (
    Bench,
    Figures,
    cancellations,
    event_rate,
    fanout_ms,
    fill_store,
    first_tokens,
    floor_fanout_ms,
    follower_kib,
    follower_lags,
    idle,
    latencies,
    map_rate,
    throughputs,
)
from benchmarks.processes import ROOT, Daemon, free_port, run_daemon, run_script
from benchmarks.programs import LIBRARIES, measure_programs, run_ms
from benchmarks.report import Row, write_report

RUNS = 3
ADDITIONS = 20_000_000


async def measure(bench: Bench) -> list[Row]:
    for _ in range(50):  # connections, caches and the first page of everything
        await latencies(bench, rounds=1)
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        print(f"{row.measure}: {row.found} (goal {row.goal}; {row.baseline})", flush=True)

    kib = Figures([bench.daemon.memory_kib() / 1024])
    add(Row.at_most("idle memory", kib, 80, "MiB"))
    add(Row.at_most("idle CPU", Figures([await idle(bench, seconds=10)]), 0.2, "% of a core"))

    values = Figures([await follower_kib(bench, followers=400)])
    add(Row.at_most("memory a follower", values, 40, "KiB"))

    found = await first_tokens(bench, rounds=5)
    direct_ms = found["direct"].median
    added = found["job"].median - direct_ms
    ratio = found["job"].median / direct_ms
    add(
        Row(
            "first token through the daemon ÷ directly (100 tokens at 20 ms)",
            "≤ 1.10, ≤ 3 ms added",
            f"{ratio:.2f}, {added:.1f} ms added",
            f"directly {direct_ms:.1f} ms; the floor adds {found['floor'].median - direct_ms:.1f} ms",
            met=ratio <= 1.10 and added <= 3,
        )
    )
    for followers, goal in ((1, 5), (100, 25)):
        through, floor, direct = await follower_lags(bench, followers=followers)
        baseline = (
            f"the floor {floor.p99:.1f} ms; as many clients that call the provider themselves {direct.p99:.1f} ms"
        )
        name = f"token → follower's line, p99, {followers} follower{'s' if followers > 1 else ''}"
        spread = f"{through.p99:.1f} ms (median {through.median:.1f}, longest {max(through.values):.1f})"
        add(Row(name, f"≤ {goal} ms", spread, baseline, met=through.p99 <= goal))

    found = await latencies(bench, rounds=150)
    call = f"the bare call {found['direct'].median:.2f} ms"
    one, three = (
        f"{call}, the floor {found['floor_one'].median:.2f} ms",
        f"the floor {found['floor_three'].median:.2f} ms",
    )
    add(Row.at_most("one provider step, submit → terminal", found["one"], 5, "ms", one))
    add(Row.at_most("a chain of three", found["three"], 10, "ms", three))

    found = await throughputs(bench, rounds=RUNS, count=600)
    share = found["jobs"].median / found["floor"].median
    baseline = (
        f"bare calls {found['direct'].median:.0f}/s; the floor {found['floor'].median:.0f}/s, of which the daemon "
        f"reaches {share:.0%}; {found['cpu_ms'].median:.1f} ms of CPU a job"
    )
    add(Row.at_least("jobs a second, 64 in flight", found["jobs"], 600, "/s", baseline))

    pairs = [(await fanout_ms(bench, at_once=50), await floor_fanout_ms(bench)) for _ in range(RUNS)]
    values, floor = Figures([pair[0] for pair in pairs]), Figures([pair[1] for pair in pairs])
    baseline = f"the floor {floor.median:.0f} ms, of which the provider's own pause is 200 ms"
    add(Row.at_most("50 sources × 200 ms fanout, max_concurrency 50", values, 230, "ms", baseline))
    values = Figures([await fanout_ms(bench, at_once=None) for _ in range(RUNS)])
    add(Row("the same at the default max_concurrency of 8", "–", values.text("ms"), "7 rounds of 200 ms"))

    found = await cancellations(bench, rounds=50)
    closed, event = found["closed"], found["event"]
    add(Row("cancel → upstream connection closed, p99", "≤ 5 ms", closed.p99_text("ms"), "–", met=closed.p99 <= 5))
    add(Row("cancel → terminal event at a follower, p99", "≤ 15 ms", event.p99_text("ms"), "–", met=event.p99 <= 15))

    for followers, tokens, goal in ((1, 30_000, 30_000), (100, 5_000, 300_000)):
        pairs = [await event_rate(bench, tokens=tokens, followers=followers) for _ in range(RUNS)]
        baseline = f"tokens read from the provider directly: {Figures([pair[1] for pair in pairs]).median:,.0f}/s"
        who = "one follower" if followers == 1 else "100 followers in all"
        values = Figures([pair[0] for pair in pairs])
        add(Row.at_least(f"events a second, stored and delivered to {who}", values, goal, "/s", baseline))

    values = Figures([await map_rate(bench, items=10_000) for _ in range(RUNS)])
    add(Row.at_least("map items a second in one job, events stored", values, 10_000, "/s"))
    return rows


def measure_start(scratch: Path, provider_port: int) -> Row:
    filled, empty = scratch / "filled", scratch / "empty"
    for home in (filled, empty):
        home.mkdir()
    fill_store(filled / "data")
    with run_daemon(scratch / "first", provider_port=provider_port):
        pass  # compiles, and brings the files into memory
    seconds: dict[Path, list[float]] = {filled: [], empty: []}
    imports = Figures()
    for _ in range(RUNS):
        imports.values.append(run_ms(["-c", LIBRARIES]) / 1000)
        for home, values in seconds.items():
            daemon = Daemon(home, provider_port=provider_port, port=free_port())
            values.append(daemon.start())
            daemon.stop()
    empty_s = Figures(seconds[empty]).median
    baseline = f"with an empty store {empty_s:.2f} s; a Python that only imports the libraries {imports.median:.2f} s"
    return Row.at_most("start with 100,000 finished jobs → ready", Figures(seconds[filled]), 1, "s", baseline)


def python_speed() -> str:
    """How fast a plain loop is just now: what a shared processor gives changes from minute to minute."""
    began = time.perf_counter()
    total = 0
    for number in range(ADDITIONS):
        total += number
    return f"{ADDITIONS / (time.perf_counter() - began) / 1e6:.0f} million additions a second"


def machine() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "CPU": f"{model}, {os.cpu_count()} cores",
        "Kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "Date": datetime.now(UTC).date().isoformat(),
        "Load before the run": f"{os.getloadavg()[0]:.1f}",
        "Python's speed before the run": python_speed(),
    }


def main() -> int:
    about = machine()
    with tempfile.TemporaryDirectory() as name, run_script("benchmarks.provider") as provider_port:
        scratch = Path(name)
        rows = [*measure_programs(rounds=15), measure_start(scratch, provider_port)]
        for row in rows:
            print(f"{row.measure}: {row.found} (goal {row.goal}; {row.baseline})", flush=True)
        with (
            run_script("benchmarks.floor", str(provider_port)) as floor_port,
            run_daemon(scratch / "home", provider_port=provider_port) as daemon,
        ):
            bench = Bench(daemon, Client(daemon.port), Client(provider_port), Client(floor_port))
            rows += trio.run(measure, bench)
    about["Load after the run"] = f"{os.getloadavg()[0]:.1f}"
    about["Python's speed after the run"] = python_speed()
    write_report(ROOT / "docs" / "performance.md", about, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
