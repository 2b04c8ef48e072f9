"""How long a provider asks to wait, from the headers of its answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

# Plain decimals only: float() also takes "inf", "nan", "1e400" and "1_000".
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?", re.ASCII)
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?", re.ASCII)
_SECONDS_PER_UNIT = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)
_LIMITED_THINGS = ("requests", "tokens")


def parse_retry_after(headers: Mapping[str, str], *, status: int | None, now: datetime) -> float | None:
    """The pause in seconds, or None if the headers (names in lower case) say nothing that can be used.

    `retry-after-ms` is the most exact and wins; `Retry-After` is seconds or a date (RFC 9110, section 10.2.3);
    `x-ratelimit-reset-requests` and `-tokens` are durations like "1m30s" (OpenAI's rate limit headers, which all of its
    answers have). `status` is that of the answer, if one is known.
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after", "").strip()
    pause = _number(text)
    if pause is None:
        pause = _until_date(text, now)
    return _until_reset(headers, status) if pause is None else pause


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text.strip()) else None


def _until_date(text: str, now: datetime) -> float | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter for a number that is larger than any year
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - now).total_seconds())


def _until_reset(headers: Mapping[str, str], status: int | None) -> float | None:
    """The longest pause of those limits that are used up."""
    pauses = [
        pause
        for thing in _LIMITED_THINGS
        if _is_used_up(headers.get(f"x-ratelimit-remaining-{thing}"), status)
        and (pause := _duration(headers.get(f"x-ratelimit-reset-{thing}", ""))) is not None
    ]
    return max(pauses, default=None)


def _is_used_up(remaining: str | None, status: int | None) -> bool:
    """Whether the limit stands in the way; a server that does not tell what remains tells it by the status alone."""
    return status == HTTPStatus.TOO_MANY_REQUESTS if remaining is None else remaining.strip() == "0"


def _duration(text: str) -> float | None:
    value = text.strip()
    if not value:
        return None
    if (seconds := _number(value)) is not None:
        return seconds
    match = _DURATION.fullmatch(value)
    if match is None:
        return None
    return sum(float(part) * unit for part, unit in zip(match.groups(), _SECONDS_PER_UNIT, strict=True) if part)
