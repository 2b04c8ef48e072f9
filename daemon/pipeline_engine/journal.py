"""Log records for systemd's journal: one entry each, with fields, over its native protocol."""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

SOCKET = "/run/systemd/journal/socket"
MAX_MESSAGE = 100_000  # characters; a datagram of the size that a socket takes by default holds them
IDENTIFIER = "pipeline-engine"

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def priority(level: int) -> int:
    """The priority of syslog(3) for a level of Python."""
    return next((number for least, number in _PRIORITIES if level >= least), 7)


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether what is written to the stream goes to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}" and Path(SOCKET).exists()


class JournalHandler(logging.Handler):
    """Sends each record as one entry, however many lines it has; never waits.

    What the journal does not take, because it is too busy or gone, is handed to `fallback`.
    """

    def __init__(self, *, fallback: logging.Handler, address: str = SOCKET) -> None:
        super().__init__()
        self._fallback = fallback
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._socket.sendto(self._entry(record), self._address)
        except OSError:
            self._fallback.handle(record)
        except Exception:  # noqa: BLE001 - as all handlers of logging do: a log line must not end what it tells of
            self.handleError(record)

    def _entry(self, record: logging.LogRecord) -> bytes:
        fields = {
            "MESSAGE": self.format(record)[:MAX_MESSAGE],
            "PRIORITY": str(priority(record.levelno)),
            "SYSLOG_IDENTIFIER": IDENTIFIER,
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName or "",
        }
        return b"".join(_field(name, value) for name, value in fields.items())

    def close(self) -> None:
        self._socket.close()
        self._fallback.close()
        super().close()


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "replace")
    if b"\n" not in data:
        return b"%s=%s\n" % (name.encode(), data)
    return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(data)), data)
