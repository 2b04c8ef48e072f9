"""What the service manager passes in, and what it is told."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline_engine import systemd
from pipeline_engine.systemd import Notifier, PassedSocketError, read_supervision, turn_away

PID = 4711


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(1)
        yield sock


def test_the_manager_is_told_in_its_own_words(manager: socket.socket) -> None:
    notifier = Notifier(manager.getsockname())
    notifier.ready("running")
    notifier.reloading()
    notifier.status("line\nMAINPID=1")
    notifier.keep_alive()
    notifier.stopping("stopping", within_s=2.5)
    notifier.close()
    told = [manager.recv(4096).decode() for _ in range(5)]
    assert told[0] == "READY=1\nSTATUS=running"
    name, number = told[1].splitlines()[1].split("=")
    assert told[1].startswith("RELOADING=1\n")
    assert name == "MONOTONIC_USEC"
    assert int(number) > 0
    assert told[2:] == [
        "STATUS=line; MAINPID=1",
        "WATCHDOG=1",
        "STOPPING=1\nSTATUS=stopping\nEXTEND_TIMEOUT_USEC=2500000",
    ]


def test_an_abstract_address_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0pipeline-engine-test-notify")
        notifier = Notifier("@pipeline-engine-test-notify")
        notifier.keep_alive()
        notifier.close()
        assert manager.recv(100) == b"WATCHDOG=1"


def test_a_manager_that_does_not_read_or_is_gone_stops_nobody(manager: socket.socket) -> None:
    notifier = Notifier(manager.getsockname())
    for _ in range(10_000):  # far more than its queue holds
        notifier.keep_alive()
    manager.close()
    notifier.ready("running")
    notifier.close()


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234"])
def test_without_a_manager_nothing_is_told(address: str | None) -> None:
    notifier = Notifier(address)
    assert not notifier.is_heard
    notifier.ready("running")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(PID)}, 0.5),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_heeded_if_it_watches_this_process(variables: dict[str, str], expected: float | None) -> None:
    assert read_supervision(variables, pid=PID).watchdog_s == expected


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """A listening socket that stands where the first passed-in descriptor is looked for."""
    sock = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(systemd, "FIRST_PASSED", sock.fileno())
    os.set_inheritable(sock.fileno(), True)
    return sock


def test_sockets_are_taken_over_and_not_passed_on(passed: socket.socket) -> None:
    supervision = read_supervision({"LISTEN_PID": str(PID), "LISTEN_FDS": "1"}, pid=PID)
    (taken,) = supervision.passed
    assert taken.getsockname() == passed.getsockname()
    assert not taken.get_inheritable()
    taken.detach()
    passed.close()


@pytest.mark.parametrize("variables", [{"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_FDS": "1"}, {}])
def test_sockets_for_another_process_are_left_alone(passed: socket.socket, variables: dict[str, str]) -> None:
    assert read_supervision(variables, pid=PID).passed == ()
    passed.close()


def test_what_is_no_socket_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w", encoding="utf-8") as file:
        monkeypatch.setattr(systemd, "FIRST_PASSED", file.fileno())
        with pytest.raises(PassedSocketError, match="not a socket"):
            read_supervision({"LISTEN_PID": str(PID), "LISTEN_FDS": "1"}, pid=PID)


def test_those_who_wait_are_turned_away(passed: socket.socket) -> None:
    with socket.create_connection(passed.getsockname()) as one, socket.create_connection(passed.getsockname()) as two:
        turn_away([passed])
        assert (one.recv(1), two.recv(1)) == (b"", b"")
    passed.close()
