"""Addresses that are listened on: ports, unix sockets, and sockets that were passed in."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest
from tests.serving_setting import (
    LOOPBACK,
    RawApp,
    running,
)

from pipeline_engine.api.serving import (
    ListenError,
    describe_listener,
    open_listeners,
)
from pipeline_engine.listen_addresses import TcpAddress, UnixAddress


async def test_a_port_in_use_is_named() -> None:
    async with open_listeners([LOOPBACK]) as listeners:
        taken = describe_listener(listeners[0])
        with pytest.raises(ListenError, match=f"127.0.0.1:{taken.port}: address already in use"):  # type: ignore[union-attr]
            async with open_listeners([taken]):
                raise AssertionError("the port is taken")


async def test_an_unknown_host_is_named() -> None:
    with pytest.raises(ListenError, match=r"cannot listen on .*no\.such\.host\.invalid:1: "):
        async with open_listeners([TcpAddress("no.such.host.invalid", 1)]):
            raise AssertionError("there is no such host")


async def test_a_port_is_free_again_at_once() -> None:
    async with running(RawApp()) as server:
        await server.assert_serves()
        address = server.address
    assert isinstance(address, TcpAddress)
    async with running(RawApp(), address=address) as server:
        await server.assert_serves()


async def test_a_unix_socket_serves_with_its_mode_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "daemon.sock"
    async with running(RawApp(), address=UnixAddress(str(path))) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        await server.assert_serves()
    assert not path.exists()


async def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "daemon.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with running(RawApp(), address=UnixAddress(str(path))) as server:
        await server.assert_serves()


async def test_a_unix_socket_that_answers_or_a_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "daemon.sock"
    async with running(RawApp(), address=UnixAddress(str(path))) as server:
        with pytest.raises(ListenError, match="another process answers there"):
            async with open_listeners([UnixAddress(str(path))]):
                raise AssertionError("it is in use")
        await server.assert_serves()
    path.write_text("precious", encoding="utf-8")
    with pytest.raises(ListenError, match="not a socket"):
        async with open_listeners([UnixAddress(str(path))]):
            raise AssertionError("it is a file")
    assert path.read_text(encoding="utf-8") == "precious"


async def test_a_unix_socket_of_a_successor_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "daemon.sock"
    async with open_listeners([UnixAddress(str(path))]):
        path.unlink()
        path.write_text("of the successor", encoding="utf-8")
    assert path.exists()


async def test_nothing_stays_open_when_one_address_fails(tmp_path: Path) -> None:
    path = tmp_path / "daemon.sock"
    (tmp_path / "file").touch()
    with pytest.raises(ListenError, match="file exists"):
        async with open_listeners([UnixAddress(str(path)), UnixAddress(str(tmp_path / "file" / "daemon.sock"))]):
            raise AssertionError("the second cannot be")
    assert not path.exists()


async def test_the_folder_of_a_unix_socket_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "daemon.sock"
    async with open_listeners([UnixAddress(str(path))]):
        assert path.parent.stat().st_mode & 0o077 == 0


async def test_a_socket_that_was_passed_in_is_served() -> None:
    passed = socket.create_server(("127.0.0.1", 0))
    port = passed.getsockname()[1]
    async with open_listeners([], passed=[passed]) as listeners:
        assert describe_listener(listeners[0]) == TcpAddress("127.0.0.1", port)
    with socket.socket() as deaf, pytest.raises(ListenError, match="does not listen"):
        async with open_listeners([], passed=[deaf]):
            raise AssertionError("it does not listen")
