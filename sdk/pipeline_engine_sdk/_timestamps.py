"""Points in time as they stand on the wire: RFC 3339 texts."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d):(\d\d)(?:\.(\d{1,9})\d*)?(?:[Zz]|([+-])(\d\d):([0-5]\d))", re.ASCII
)
_ZERO = datetime(1, 1, 1, tzinfo=UTC)


def parse_timestamp(text: str) -> datetime | None:
    """The point in time of an RFC 3339 text, in UTC, its fraction cut to microseconds.

    None for the year 1, Go's zero time, which means "never". A leap second is the second after it. Raises ValueError
    for everything else, also for a time without an offset, which might be anybody's local time.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an RFC 3339 time with an offset")
    day, minute, second, fraction, sign, hours, minutes = match.groups()
    is_leap = second == "60"
    try:
        moment = datetime.strptime(f"{day}T{minute}:{59 if is_leap else second}+0000", "%Y-%m-%dT%H:%M:%S%z")
        moment += timedelta(seconds=is_leap, microseconds=int(((fraction or "") + "000000")[:6]))
        if sign:
            offset = timedelta(hours=int(hours), minutes=int(minutes))
            moment += -offset if sign == "+" else offset
    except (ValueError, OverflowError) as exc:
        raise ValueError(f"{text!r} is no point in time: {exc}") from None
    return None if moment == _ZERO else moment


def format_timestamp(moment: datetime) -> str:
    """The text of a point in time as the daemon writes it: in UTC, with six digits of fraction and a Z.

    Raises ValueError for a datetime without a time zone.
    """
    if moment.tzinfo is None:
        raise ValueError("the datetime has no time zone")
    return moment.astimezone(UTC).isoformat(timespec="microseconds")[:-6] + "Z"
