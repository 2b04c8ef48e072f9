"""The heads of answers that are plain enough to be written as they are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_NO_BODY = frozenset({204, 304})
_HOP_BY_HOP = frozenset({b"connection", b"transfer-encoding", b"trailer", b"upgrade", b"keep-alive"})
# RFC 9110, 5.1 and 5.5, for all of them in one pass
_FIELDS = re.compile(
    rb"(?:[-!#$%&'*+.^_`|~0-9a-z]+: [\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?\r\n)*"
)


@dataclass(frozen=True, slots=True)
class PlainHead:
    """A head as it goes over the wire; `length` is that of the body, None where the body comes in chunks."""

    data: bytes
    length: int | None


def plain_head(status: int, headers: Iterable[tuple[bytes, bytes]]) -> PlainHead | None:
    """The head of an answer that has a body and leaves the connection open; None for every other, good or bad."""
    if status < 200 or status in _NO_BODY:
        return None
    length: int | None = None
    lines = []
    for given_name, value in headers:
        name = given_name.lower()
        if name in _HOP_BY_HOP:
            return None
        if name == b"content-length":
            if length is not None or not value.isdigit():
                return None
            length = int(value)
        lines.append(b"%b: %b\r\n" % (name, value))
    if length is None:
        lines.append(b"transfer-encoding: chunked\r\n")
    fields = b"".join(lines)
    # As many lines as there are headers: no value has begun one of its own.
    if fields.count(b"\n") != len(lines) or _FIELDS.fullmatch(fields) is None:
        return None
    return PlainHead(b"HTTP/1.1 %d \r\n%b\r\n" % (status, fields), length)
