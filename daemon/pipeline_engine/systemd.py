"""The protocol of the service manager: what it passes in, and what it is told (sd_notify(3), sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from pipeline_engine.errors import PipelineEngineError

FIRST_PASSED = 3  # the number of the first descriptor that is passed in


class PassedSocketError(PipelineEngineError):
    """What was passed in as a socket is none."""

    code = "unavailable"


class Notifier:
    """Tells the service manager how the daemon does; without one it is silent.

    Nothing here waits or raises: a manager that does not read must not stop the daemon.
    """

    def __init__(self, address: str | None) -> None:
        self._socket: socket.socket | None = None
        # Other forms (`vsock:`) are for virtual machines as a whole.
        if address is not None and address[:1] in ("/", "@"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._address = "\0" + address[1:] if address is not None and address.startswith("@") else address or ""

    @property
    def is_heard(self) -> bool:
        return self._socket is not None

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """`ready` ends it."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now}\nSTATUS=reading the configuration again")

    def stopping(self, status: str, *, within_s: float) -> None:
        """Stopping takes up to `within_s` seconds from now, whatever the unit's TimeoutStopSec says."""
        self._send(f"STOPPING=1\nSTATUS={status}\nEXTEND_TIMEOUT_USEC={round(within_s * 1_000_000)}")

    def status(self, status: str) -> None:
        self._send("STATUS=" + "; ".join(status.splitlines()))

    def keep_alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, text: str) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.sendto(text.encode("utf-8", "replace"), socket.MSG_DONTWAIT, self._address)


@dataclass(frozen=True, slots=True)
class Supervision:
    """What the service manager gave this process: nothing at all when it was not started by one.

    `watchdog_s` is how long the daemon may be silent, in seconds; None when nobody watches.
    """

    notifier: Notifier
    passed: tuple[socket.socket, ...] = ()
    watchdog_s: float | None = None


def read_supervision(environ: Mapping[str, str], *, pid: int) -> Supervision:
    """What the variables say, as far as they are meant for the process `pid`. Raises PassedSocketError."""
    return Supervision(
        notifier=Notifier(environ.get("NOTIFY_SOCKET")),
        passed=tuple(_passed_sockets(environ, pid)),
        watchdog_s=_watchdog(environ, pid),
    )


def _passed_sockets(environ: Mapping[str, str], pid: int) -> list[socket.socket]:
    if environ.get("LISTEN_PID") != str(pid) or not environ.get("LISTEN_FDS", "").isdecimal():
        return []
    sockets = []
    for descriptor in range(FIRST_PASSED, FIRST_PASSED + int(environ["LISTEN_FDS"])):
        try:
            os.set_inheritable(descriptor, False)
            sockets.append(socket.socket(fileno=descriptor))
        except OSError as exc:
            words = f"descriptor {descriptor}, passed in by the service manager, is not a socket: {exc.strerror}"
            raise PassedSocketError(words) from exc
    return sockets


def _watchdog(environ: Mapping[str, str], pid: int) -> float | None:
    interval = environ.get("WATCHDOG_USEC", "")
    if not interval.isdecimal() or int(interval) == 0 or environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return int(interval) / 1_000_000


def turn_away(passed: Iterable[socket.socket]) -> None:
    """Close the connections that wait on passed-in sockets.

    For a daemon that cannot start until somebody mends its configuration: a connection that is left waiting would have
    it started again at once, and again, until the service manager gives the socket up for good.
    """
    for sock in passed:
        sock.setblocking(False)
        with suppress(OSError):
            while True:
                sock.accept()[0].close()
