"""Records become entries of the journal."""

from __future__ import annotations

import io
import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline_engine import journal
from pipeline_engine.journal import JournalHandler, is_journal


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "journal"))
        sock.settimeout(1)
        yield sock


@pytest.fixture
def fallback() -> logging.StreamHandler[io.StringIO]:
    return logging.StreamHandler(io.StringIO())


@pytest.fixture
def handler(receiver: socket.socket, fallback: logging.StreamHandler[io.StringIO]) -> Iterator[JournalHandler]:
    handler = JournalHandler(fallback=fallback, address=receiver.getsockname())
    yield handler
    handler.close()


def record(message: str, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("some.module", level, "/x/y.py", 7, message, None, None, "f")


def fields(data: bytes) -> dict[str, str]:
    found = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, separator, value = line.partition(b"=")
        if not separator:
            (size,) = struct.unpack_from("<Q", data)
            value, data = data[8 : 8 + size], data[8 + size + 1 :]
        found[name.decode()] = value.decode()
    return found


def test_a_record_is_one_entry_with_its_fields(handler: JournalHandler, receiver: socket.socket) -> None:
    handler.handle(record("two\nlines"))
    assert fields(receiver.recv(1 << 20)) == {
        "MESSAGE": "two\nlines",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "pipeline-engine",
        "LOGGER": "some.module",
        "CODE_FILE": "/x/y.py",
        "CODE_LINE": "7",
        "CODE_FUNC": "f",
    }


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.CRITICAL, "2"), (logging.ERROR, "3"), (logging.INFO, "6"), (logging.DEBUG, "7")],
)
def test_levels_become_priorities(handler: JournalHandler, receiver: socket.socket, level: int, priority: str) -> None:
    handler.handle(record("x", level))
    assert fields(receiver.recv(1 << 20))["PRIORITY"] == priority


def test_a_huge_message_is_cut(handler: JournalHandler, receiver: socket.socket) -> None:
    handler.handle(record("x" * 1_000_000))
    assert len(fields(receiver.recv(1 << 20))["MESSAGE"]) == journal.MAX_MESSAGE


def test_what_the_journal_does_not_take_goes_to_the_fallback(
    handler: JournalHandler, receiver: socket.socket, fallback: logging.StreamHandler[io.StringIO]
) -> None:
    Path(receiver.getsockname()).unlink()
    handler.handle(record("lost?"))
    assert fallback.stream.getvalue() == "lost?\n"


def test_a_stream_is_the_journal_if_the_manager_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SOCKET", str(tmp_path))
    with (tmp_path / "file").open("w", encoding="utf-8") as stream:
        status = os.fstat(stream.fileno())
        assert is_journal(stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        assert not is_journal(stream, {"JOURNAL_STREAM": f"{status.st_dev}:1"})
        assert not is_journal(stream, {})
    assert not is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:1"})
