"""The headers in which providers ask to wait."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pipeline_engine.providers.retry_after import parse_retry_after

NOW = datetime(2026, 1, 15, 10, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "0"}, 0),
        ({"retry-after": "2"}, 2),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "Thu, 15 Jan 2026 10:00:07 GMT"}, 7),
        ({"retry-after": "Thursday, 15-Jan-26 10:00:07 GMT"}, 7),
        ({"retry-after": "Thu, 15 Jan 2026 09:59:00 GMT"}, 0),
        ({"retry-after": ""}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e400"}, None),
        ({"retry-after": "1_000"}, None),
        ({"retry-after": "86400"}, 86400),
        ({"retry-after": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"}, None),
        ({"retry-after": "Mon, 01 Jan 2026 00:00:00 +99999999999999"}, None),
        ({"retry-after-ms": "250", "retry-after": "30"}, 0.25),
        ({"retry-after-ms": "nan", "retry-after": "30"}, 30),
        ({"x-ratelimit-reset-requests": "1m30s"}, 90),
        ({"x-ratelimit-reset-requests": "7.66s"}, 7.66),
        ({"x-ratelimit-reset-tokens": "20ms"}, 0.02),
        ({"x-ratelimit-reset-tokens": "6h1m0s"}, 21660),
        ({"x-ratelimit-reset-tokens": "later"}, None),
        ({"retry-after": "soon", "x-ratelimit-reset-requests": "3s"}, 3),
        ({}, None),
    ],
)
def test_how_long_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert parse_retry_after(headers, status=429, now=NOW) == (None if seconds is None else pytest.approx(seconds))


def test_only_the_limit_that_is_used_up_counts() -> None:
    headers = {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "2s",
        "x-ratelimit-remaining-tokens": "5000",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert parse_retry_after(headers, status=429, now=NOW) == 2


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (500, {"x-ratelimit-remaining-requests": "4999", "x-ratelimit-reset-requests": "6m0s"}, None),
        (429, {"x-ratelimit-remaining-requests": "4999", "x-ratelimit-reset-requests": "6m0s"}, None),
        (500, {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s"}, 2),
        (None, {"x-ratelimit-remaining-tokens": " 0 ", "x-ratelimit-reset-tokens": "2s"}, 2),
        (500, {"x-ratelimit-reset-requests": "6m0s"}, None),
        (None, {"x-ratelimit-reset-requests": "6m0s"}, None),
        (429, {"x-ratelimit-reset-requests": "6m0s"}, 360),
        (429, {"x-ratelimit-remaining-requests": "4", "x-ratelimit-reset-tokens": "2s"}, 2),
        (500, {"retry-after": "7"}, 7),
    ],
)
def test_a_limit_that_is_not_used_up_asks_for_no_pause(
    status: int | None, headers: dict[str, str], seconds: float | None
) -> None:
    assert parse_retry_after(headers, status=status, now=NOW) == seconds
