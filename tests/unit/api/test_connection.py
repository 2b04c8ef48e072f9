"""A connection's judgement of its peer, from what the kernel says."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest

from pipeline_engine.api.serving.connection import _has_vanished


class Socket:
    """A socket whose struct tcp_info says this."""

    def __init__(self, *, unacknowledged: int, since_last_ack_ms: int, is_open: bool = True) -> None:
        self._info = bytearray(104)
        struct.pack_into("=I", self._info, 24, unacknowledged)
        struct.pack_into("=I", self._info, 56, since_last_ack_ms)
        self._is_open = is_open

    def fileno(self) -> int:
        return 7 if self._is_open else -1

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        return bytes(self._info[:size])


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="Linux says it, others do not")
def test_a_peer_has_vanished_when_it_is_silent_while_data_is_on_its_way() -> None:
    silent: Any = Socket(unacknowledged=1, since_last_ack_ms=15_000)
    idle: Any = Socket(unacknowledged=0, since_last_ack_ms=600_000)
    busy: Any = Socket(unacknowledged=9, since_last_ack_ms=40)
    closed: Any = Socket(unacknowledged=1, since_last_ack_ms=15_000, is_open=False)
    assert [_has_vanished(sock) for sock in (silent, idle, busy, closed)] == [True, False, False, False]


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="Linux says it, others do not")
async def test_a_peer_that_only_does_not_read_has_not_vanished() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        server, _peer = listener.accept()
        with server:
            server.setblocking(False)
            with pytest.raises(BlockingIOError):  # noqa: PT012 (how much the kernel takes is its own affair)
                while True:
                    server.send(b"x" * 65_536)
            assert client.fileno() != -1
            sock: Any = server
            assert not _has_vanished(sock)
