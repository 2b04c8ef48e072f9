"""A dozen kill -9 under load; `make chaos` does it for longer."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.processes import run_daemon, run_script
from benchmarks.storm import Storm


async def test_nothing_acknowledged_or_shown_is_lost_when_the_daemon_is_killed(tmp_path: Path) -> None:
    with run_script("benchmarks.provider") as port, run_daemon(tmp_path / "home", provider_port=port) as daemon:
        storm = Storm(daemon, random.Random(5))
        await storm.run(11)
    assert storm.kills == 12
    assert storm.kills_while_starting == 1
    assert storm.faults == []
    assert len(storm.accepted) > 20
    assert len(storm.shown) > 5
    assert sum(storm.statuses.values()) == len(storm.accepted)
