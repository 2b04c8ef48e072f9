"""The limits within which connections are served."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Times in seconds, sizes in bytes. All limits are for one connection but `max_connections` and `grace_s`."""

    max_connections: int = 4096
    max_head_bytes: int = 64 * KIB
    max_body_bytes: int = 32 * MIB
    head_timeout_s: float = 20.0  # from the first byte of a request (or the connect) to the end of its head
    body_timeout_s: float = 30.0  # a body may take this long, and then a second more for each min_body_rate bytes
    min_body_rate: float = 1024.0  # bytes a second
    keep_alive_s: float = 60.0  # between two requests
    write_stall_s: float = 300.0  # a write that moves no byte for so long ends the connection
    grace_s: float = 20.0  # what runs when the server is stopped may take so long to end
