"""Requests that are plain enough to be read as they are."""

from __future__ import annotations

import re
from dataclasses import dataclass

# RFC 9112, 3 and RFC 9110, 5.1 and 5.5, without what is optional, obsolete or rare in them
_HEAD = re.compile(
    rb"(GET|POST|PUT|DELETE) (/[!-~]*) HTTP/1\.1\r\n((?:[-!#$%&'*+.^_`|~0-9A-Za-z]+: *[!-~](?:[ -~]*[!-~])?\r\n)+)\r\n"
)
MAX_LENGTH_DIGITS = 18
# What any of these asks for is not plain.
_OTHER = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer"})


@dataclass(frozen=True, slots=True)
class PlainRequest:
    """A request; the names of the headers are in lower case."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


def plain_request(data: bytes, *, max_head_bytes: int, max_body_bytes: int) -> PlainRequest | None:
    """The one whole request that these bytes are, if it is plain and leaves the connection open; None for all others."""
    found = _HEAD.match(data)
    if found is None or found.end() > max_head_bytes:
        return None
    headers: list[tuple[bytes, bytes]] = []
    hosts = 0
    length: int | None = None
    for line in found[3].split(b"\r\n")[:-1]:
        given_name, _, value = line.partition(b":")
        name, value = given_name.lower(), value.lstrip(b" ")
        if name == b"host":
            hosts += 1
        elif name == b"content-length":
            if length is not None or not value.isdigit() or len(value) > MAX_LENGTH_DIGITS:
                return None
            length = int(value)
        elif name in _OTHER or (name == b"connection" and value.lower() != b"keep-alive"):
            return None
        headers.append((name, value))
    body = data[found.end() :]
    if hosts != 1 or len(body) != (length or 0) or len(body) > max_body_bytes:
        return None
    return PlainRequest(found[1], found[2], headers, body)
