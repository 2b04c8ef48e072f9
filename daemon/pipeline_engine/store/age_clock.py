"""The clock by which stored things age: no leap of the wall clock makes them old, or young, at once."""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
LEAP_S = 60.0  # seconds by which the wall clock may be set without a line in the log


def _read_boottime() -> float:
    """Seconds since the machine was started, sleep included, which nobody can set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class AgeClock:
    """Seconds since the epoch that run on steadily from where they begin, by default at the wall clock's time."""

    def __init__(self, *, starts_at: float | None = None, read: Callable[[], float] = _read_boottime) -> None:
        self._read = read
        self.offset = (time.time() if starts_at is None else starts_at) - read()

    def now(self) -> float:
        return self._read() + self.offset

    def stamp(self) -> str:
        """The time as RFC 3339, which sorts as the store's `finished_at`."""
        return to_stamp(self.now())


def to_stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def seconds_of(stamp: str) -> float:
    """Seconds since the epoch of an RFC 3339 text."""
    return datetime.fromisoformat(stamp).timestamp()


def open_age_clock(
    file: Path,
    *,
    newest: str | None,
    wall: Callable[[], float] = time.time,
    read: Callable[[], float] = _read_boottime,
    boot_id: str | None = None,
) -> AgeClock:
    """The clock of a store whose last stamp is `newest`; `file` remembers how it stands to this start of the machine.

    Since the machine was started, only the time counts that has really passed. From one start of the machine to the
    next the wall clock is all there is; but what is stored is never younger than now, so that the order stays.
    """
    boot_id = boot_id or _boot_id()
    known = _read_offset(file, boot_id)
    starts_at = wall() if known is None else read() + known
    if known is not None and abs(wall() - starts_at) > LEAP_S:
        leap = wall() - starts_at
        log.warning("the wall clock was set by %+.0f s; the ages of jobs do not follow it until the next boot", leap)
    if newest is not None:
        starts_at = max(starts_at, seconds_of(newest))
    clock = AgeClock(starts_at=starts_at, read=read)
    if boot_id is not None and (known is None or abs(known - clock.offset) > 1):
        _write_offset(file, boot_id, clock.offset)
    return clock


def _boot_id() -> str | None:
    """None where /proc has nothing but processes."""
    with suppress(OSError):
        return BOOT_ID.read_text(encoding="ascii").strip()
    return None


def _read_offset(file: Path, boot_id: str | None) -> float | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(file.read_text(encoding="utf-8"))
        if boot_id is not None and known["boot_id"] == boot_id:
            return float(known["offset_s"])
    return None


def _write_offset(file: Path, boot_id: str, offset_s: float) -> None:
    temporary = file.with_name(f".{file.name}-{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
            json.dump({"boot_id": boot_id, "offset_s": offset_s}, out)
        temporary.replace(file)
    except OSError as exc:
        log.warning("the clock of the store cannot be remembered: %s: %s", file, exc.strerror)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
