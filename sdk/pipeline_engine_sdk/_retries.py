"""Decides after each failure whether a call is made again, and when."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from ._calls import Call, read_error
from ._errors import ConnectionFailed
from ._settings import Target

FIRST_PAUSE = 0.1  # seconds; doubled with each failure
LONGEST_PAUSE = 2.0  # seconds
LONGEST_RETRY_AFTER = 30.0  # seconds; who is asked to wait longer is told so instead
CONTACT = 5.0  # seconds; a connection that held so long was one, even if it broke before the answer

RETRIED_STATUSES = frozenset({429, 502, 503, 504})

_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)
# With these nothing has been sent, so even what must not be repeated may be sent again.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


def parse_retry_after(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """The pause in seconds that the header asks for, as a number or a date (RFC 9110, section 10.2.3)."""
    text = headers.get("retry-after", "").strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter for a number that is larger than any year
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - now).total_seconds())


class Patience:
    """Counts failures in a row: gives growing pauses, until `max_retries` of them, or `give_up_after_s` seconds after
    the first. Either one may be None, which is no limit.
    """

    def __init__(
        self,
        *,
        max_retries: int | None,
        give_up_after_s: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_retries = max_retries
        self._give_up_after_s = give_up_after_s
        self._clock = clock
        self._failures = 0
        self._failing_since: float | None = None

    def heard(self) -> None:
        """The daemon is there: the time until giving up begins anew."""
        self._failing_since = None

    def progressed(self) -> None:
        """Something came of it: the next failure is the first one."""
        self.heard()
        self._failures = 0

    def pause(self, retry_after: float | None = None) -> float | None:
        """Seconds to wait before the next try, or None: give up."""
        now = self._clock()
        self._failures += 1
        if self._failing_since is None:
            self._failing_since = now
        if self._max_retries is not None and self._failures > self._max_retries:
            return None
        # Jitter, so that the followers of a daemon that restarts do not come back in step; no secret depends on it.
        longest = min(FIRST_PAUSE * 2.0 ** min(self._failures - 1, 10), LONGEST_PAUSE)
        pause = longest * random.uniform(0.5, 1.0) if retry_after is None else retry_after  # noqa: S311
        if pause > LONGEST_RETRY_AFTER:
            return None
        if self._give_up_after_s is not None:
            left = self._failing_since + self._give_up_after_s - now
            if left <= 0:
                return None
            pause = min(pause, left)
        return pause


class Attempts:
    """The attempts of one call."""

    def __init__(
        self, call: Call[Any], target: Target, patience: Patience, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._call = call
        self._target = target
        self._patience = patience
        self._clock = clock
        self._began = clock()

    def begin(self) -> None:
        """An attempt begins now."""
        self._began = self._clock()

    def after_failure(self, error: httpx.HTTPError) -> float:
        """Seconds until the next attempt. Raises ConnectionFailed when there is none."""
        not_sent = isinstance(error, _NOT_SENT)
        if not not_sent and self._clock() - self._began >= CONTACT:
            self._patience.heard()
        may_repeat = not_sent or self._call.repeatable
        hopeless = isinstance(error, httpx.UnsupportedProtocol)
        pause = self._patience.pause() if may_repeat and not hopeless else None
        if pause is None:
            raise connection_failed(self._target, error, job_id=self._call.job_id) from error
        return pause

    def after_answer(self, status: int, headers: Mapping[str, str], content: bytes) -> float:
        """Seconds until the next attempt, after an answer that is none of success. Raises its error, if that is final."""
        retry_after = parse_retry_after(headers, now=datetime.now(UTC))
        error = read_error(self._call, status, content, retry_after=retry_after)
        # A refusal with one of these statuses says that nothing has been done, but a proxy may say it too.
        may_repeat = status in RETRIED_STATUSES and self._call.repeatable
        pause = self._patience.pause(retry_after) if may_repeat else None
        if pause is None:
            raise error
        return pause


def connection_failed(target: Target, error: Exception, *, job_id: str | None) -> ConnectionFailed:
    words = re.sub(r"^\[Errno \d+\] ", "", str(error)) or type(error).__name__
    kind = "no answer in time from" if isinstance(error, httpx.ReadTimeout) else "no connection to"
    return ConnectionFailed(f"{kind} the daemon at {target}: {words}", job_id=job_id)
