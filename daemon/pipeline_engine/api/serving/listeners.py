"""Listening sockets: TCP, unix, and those that a parent process passes in."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from pipeline_engine.errors import PipelineEngineError
from pipeline_engine.listen_addresses import Address, TcpAddress, UnixAddress

BACKLOG = 1024  # connections that wait to be accepted; the kernel has a limit of its own


class ListenError(PipelineEngineError):
    """An address that cannot be listened on; the message names it and says why."""

    code = "unavailable"


def describe_listener(listener: trio.SocketListener) -> Address:
    """Where it listens: with the real port where 0 was asked for."""
    return describe_socket(listener.socket)


def describe_socket(sock: socket.socket | trio.socket.SocketType) -> Address:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return UnixAddress(os.fsdecode(name))
    return TcpAddress(name[0], name[1])


@asynccontextmanager
async def open_listeners(
    addresses: Iterable[Address],
    *,
    passed: Sequence[socket.socket] = (),
    unix_mode: int = 0o660,
    backlog: int = BACKLOG,
) -> AsyncGenerator[list[trio.SocketListener], None]:
    """Listens on all of the addresses and on the sockets that were passed in, or raises ListenError.

    At the end all are closed, and the files of our own unix sockets removed if they are still ours.
    """
    listeners: list[trio.SocketListener] = []
    files: list[tuple[Path, tuple[int, int]]] = []
    try:
        for sock in passed:
            listeners.append(_adopt(sock))
        for address in addresses:
            if isinstance(address, UnixAddress):
                listeners.append(_listen_unix(address, unix_mode, backlog))
                path = Path(address.path)
                files.append((path, _identity(path)))
            else:
                listeners.extend(await _listen_tcp(address, backlog))
        yield listeners
    finally:
        for listener in listeners:
            listener.socket.close()
        for path, identity in files:
            _remove_if_ours(path, identity)


def _adopt(sock: socket.socket) -> trio.SocketListener:
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ListenError("a socket that was passed in does not listen")
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def _listen_tcp(address: TcpAddress, backlog: int) -> list[trio.SocketListener]:
    """One listener for each address of the host: `localhost` has two, where there is IPv6."""
    try:
        found = await trio.socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as exc:
        raise ListenError(f"cannot listen on {address}: {exc.strerror or exc}") from exc
    listeners: list[trio.SocketListener] = []
    missing: OSError | None = None
    port = address.port
    try:
        for family, _type, _protocol, _name, sockaddr in found:
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((sockaddr[0], port, *sockaddr[2:]))
                sock.listen(backlog)
            except OSError as exc:
                sock.close()
                if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = exc  # a name may have an address of a family that this machine does not have
                continue
            listeners.append(trio.SocketListener(trio.socket.from_stdlib_socket(sock)))
            port = sock.getsockname()[1] if port == 0 else port
        if missing is not None and not listeners:
            raise missing
    except OSError as exc:
        for listener in listeners:
            listener.socket.close()
        raise ListenError(f"cannot listen on {address}: {os.strerror(exc.errno or 0).lower()}") from exc
    return listeners


def _listen_unix(address: UnixAddress, mode: int, backlog: int) -> trio.SocketListener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        Path(address.path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_stale(address)
        sock.bind(address.path)
        Path(address.path).chmod(mode)  # before listen: until then nobody can connect, whatever the umask was
        sock.listen(backlog)
    except OSError as exc:
        sock.close()
        reason = os.strerror(exc.errno).lower() if exc.errno else str(exc)
        raise ListenError(f"cannot listen on {address}: {reason}") from exc
    except ListenError:
        sock.close()
        raise
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def _remove_stale(address: UnixAddress) -> None:
    try:
        found = Path(address.path).lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ListenError(f"cannot listen on {address}: there is a file that is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog answers too: EAGAIN
        if probe.connect_ex(address.path) != errno.ECONNREFUSED:
            raise ListenError(f"cannot listen on {address}: another process answers there")
    Path(address.path).unlink()


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _remove_if_ours(path: Path, identity: tuple[int, int]) -> None:
    with suppress(FileNotFoundError):
        if _identity(path) == identity:
            path.unlink()
