from __future__ import annotations

from datetime import datetime

import pytest

from pipeline_engine_sdk import format_timestamp, parse_timestamp


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("2026-01-01T09:00:00.123456789Z", "2026-01-01T09:00:00.123456Z"),
        ("2026-01-01T09:00:00.1Z", "2026-01-01T09:00:00.100000Z"),
        ("2026-01-01T09:00:00.20373+00:00", "2026-01-01T09:00:00.203730Z"),
        ("2026-01-01T11:00:00+02:00", "2026-01-01T09:00:00.000000Z"),
        ("2026-01-01T04:00:00.5-05:00", "2026-01-01T09:00:00.500000Z"),
        ("2026-01-01t09:00:00z", "2026-01-01T09:00:00.000000Z"),
        ("2026-01-01 09:00:00Z", "2026-01-01T09:00:00.000000Z"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00.000000Z"),
        ("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_what_servers_write_is_read_in_utc(text: str, meaning: str) -> None:
    moment = parse_timestamp(text)
    assert moment is not None
    assert format_timestamp(moment) == meaning


def test_go_s_zero_time_is_none() -> None:
    assert parse_timestamp("0001-01-01T00:00:00Z") is None


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-01T09:00:00",
        "2026-01-01",
        "1767258000",
        "2026-01-01T09:00:00.Z",
        "2026-02-30T09:00:00Z",
        "9999-12-31T23:59:59-05:00",
        "2026-01-01T24:00:00Z",
        "",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no"):
        parse_timestamp(text)


def test_a_time_without_a_zone_is_not_written() -> None:
    with pytest.raises(ValueError, match="zone"):
        format_timestamp(datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point
