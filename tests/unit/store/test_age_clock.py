"""How old things are, whatever happens to the wall clock."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline_engine.store.age_clock import AgeClock, open_age_clock, seconds_of, to_stamp

YEAR_S = 365 * 24 * 3600.0
BEGIN = 1_800_000_000.0


@dataclass
class Machine:
    """Its wall clock, the seconds since its start, and which start that was."""

    wall: float = BEGIN
    up: float = 100.0
    boot_id: str = "first"

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.up += seconds

    def start_again(self) -> None:
        self.up, self.boot_id = 1.0, self.boot_id + "+"

    def open(self, directory: Path, newest: str | None = None) -> AgeClock:
        file = directory / "clock.json"
        return open_age_clock(file, newest=newest, wall=lambda: self.wall, read=lambda: self.up, boot_id=self.boot_id)


def test_stamps_sort_as_times_do() -> None:
    stamps = [to_stamp(BEGIN + part) for part in (0, 0.001, 0.5, 1, 86_400)]
    assert stamps == sorted(stamps)
    assert [seconds_of(stamp) for stamp in stamps] == pytest.approx([BEGIN + p for p in (0, 0.001, 0.5, 1, 86_400)])
    assert to_stamp(BEGIN).endswith("Z")
    assert datetime.fromisoformat(to_stamp(BEGIN)) == datetime.fromtimestamp(BEGIN, UTC)


def test_it_begins_at_the_wall_clock_and_then_does_not_look_at_it(tmp_path: Path) -> None:
    machine = Machine()
    clock = machine.open(tmp_path)
    assert clock.now() == BEGIN
    machine.pass_time(10)
    machine.wall += 10 * YEAR_S
    assert clock.now() == BEGIN + 10
    machine.wall -= 20 * YEAR_S
    assert clock.now() == BEGIN + 10


@pytest.mark.parametrize("leap", [10 * YEAR_S, -10 * YEAR_S])
def test_a_restart_of_the_daemon_counts_the_time_that_passed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, leap: float
) -> None:
    machine = Machine()
    machine.open(tmp_path)
    machine.pass_time(3600)
    machine.wall += leap
    with caplog.at_level(logging.WARNING):
        assert machine.open(tmp_path).now() == BEGIN + 3600
    [record] = caplog.records
    assert f"the wall clock was set by {leap:+.0f} s" in record.message


def test_a_restart_of_the_machine_believes_the_wall_clock(tmp_path: Path) -> None:
    machine = Machine()
    machine.open(tmp_path)
    machine.start_again()
    machine.wall += 3 * YEAR_S
    assert machine.open(tmp_path).now() == BEGIN + 3 * YEAR_S


def test_now_is_never_before_what_is_stored(tmp_path: Path) -> None:
    machine = Machine()
    newest = to_stamp(BEGIN + 500)
    machine.start_again()  # with the wall clock of a machine whose battery is empty
    machine.wall = 0.0
    clock = machine.open(tmp_path, newest)
    assert clock.now() == BEGIN + 500
    machine.pass_time(5)
    assert machine.open(tmp_path, newest).now() == BEGIN + 505


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"boot_id": "first", "offset_s": "x"}'])
def test_a_file_that_makes_no_sense_is_written_anew(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "clock.json"
    file.write_bytes(content)
    machine = Machine()
    assert machine.open(tmp_path).now() == BEGIN
    assert json.loads(file.read_bytes()) == {"boot_id": "first", "offset_s": BEGIN - 100}
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_directory_that_cannot_be_written_is_told_of_and_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert Machine().open(tmp_path / "missing").now() == BEGIN
    assert "the clock of the store cannot be remembered" in caplog.text
