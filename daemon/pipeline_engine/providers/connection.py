"""One HTTP/1.1 connection to a model server."""

from __future__ import annotations

import errno
import math
import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import trio

from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.providers.answer_parser import AnswerParser, InvalidAnswerError

READ_SIZE = 64 * 1024  # bytes
KEEP_ALIVE_EXPIRY = 4.0  # seconds: less than the 5 after which common servers close an idle connection

#: What is wrong with a header; the header itself may be a secret.
FORBIDDEN_CHARACTER = "a header of the request holds a character that HTTP does not allow"

# RFC 9110, 5.1 and 5.5
_HEADER = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+: (?:[!-~](?:[\t -~]*[!-~])?)?")

Request = bytes  # as it goes over the wire


def write_request(method: str, target: str, host: str, headers: Mapping[str, str], body: bytes) -> Request:
    """A request of HTTP/1.1; the names of the headers are in lower case. Raises ProviderError."""
    given = {"host": host, **headers}
    if body:
        given["content-length"] = str(len(body))
    lines = [f"{name}: {value}" for name, value in given.items()]
    if not all(map(_HEADER.fullmatch, lines)):
        raise ProviderError(ErrorCode.PROVIDER_ERROR, FORBIDDEN_CHARACTER)
    head = "\r\n".join((f"{method} {target} HTTP/1.1", *lines))
    return b"%b\r\n\r\n%b" % (head.encode("ascii"), body)


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """The beginning of an answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]


class CannotConnectError(ProviderError):
    """Nobody takes a connection at the address."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a connection leads."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


async def open_connection(
    origin: Origin, *, tls_context: Callable[[], ssl.SSLContext], timeout_s: float | None
) -> Connection:
    """Connect, and shake hands if the origin is https. Raises ProviderError that names the address and the reason."""
    with trio.move_on_after(math.inf if timeout_s is None else timeout_s):
        try:
            return await _connect(origin, tls_context)
        except (OSError, trio.BrokenResourceError, ssl.CertificateError) as exc:
            raise _cannot_connect(origin, _reason(exc)) from exc
        except UnicodeError as exc:  # a label that is empty or too long
            raise _cannot_connect(origin, "the name of the host is not valid", retryable=False) from exc
    raise _cannot_connect(origin, f"no connection within {timeout_s:g} s")


async def _connect(origin: Origin, tls_context: Callable[[], ssl.SSLContext]) -> Connection:
    tcp = await trio.open_tcp_stream(origin.host, origin.port)
    if origin.scheme == "http":
        return Connection(origin, tcp, tcp)
    tls = trio.SSLStream(tcp, tls_context(), server_hostname=origin.host, https_compatible=True)
    try:
        await tls.do_handshake()
    except BaseException:
        tcp.socket.close()
        raise
    return Connection(origin, tcp, tls)


class Connection:
    """Sends one request at a time and reads its answer; closing is immediate and cannot block.

    Not httpcore's, whose connections hand out every HTTP chunk on its own: this one gives all that one read from the
    network brought as one piece.
    """

    def __init__(self, origin: Origin, tcp: trio.SocketStream, stream: trio.abc.Stream) -> None:
        self.origin = origin
        self._tcp = tcp
        self._stream = stream
        self._answer = AnswerParser()
        self._is_sent = False
        self._idle_since = trio.current_time()
        #: Whether any byte of the answer to the current request has come.
        self.answered = False

    async def request(self, request: Request) -> AnswerHead:
        """Send a request and wait for the head of its answer."""
        self.answered = self._is_sent = False
        self._answer = answer = AnswerParser()
        # A server may refuse a body that it has not read whole: its answer is still there to read.
        with suppress(trio.BrokenResourceError):
            await self._send_all(request)
            self._is_sent = True
        while not answer.has_head:
            await self._fill()
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
        return AnswerHead(answer.status, headers)

    async def receive_body(self) -> bytes:
        """All of the body that has arrived, after waiting for some; empty at its end."""
        while not self._answer.has_body and not self._answer.is_complete:
            await self._fill()
        return self._answer.take_body()

    def is_complete(self) -> bool:
        """Whether the answer is at its end, and all of it taken."""
        return self._answer.is_complete and not self._answer.has_body

    def make_idle(self) -> bool:
        """Get ready for the next request; False if there can be none, because the answer is not at its end."""
        self._idle_since = trio.current_time()
        return self._is_sent and self._answer.leaves_connection_open

    def is_expired(self) -> bool:
        return trio.current_time() - self._idle_since > KEEP_ALIVE_EXPIRY

    def is_alive(self) -> bool:
        """Whether an idle connection may be used: what can be read from one can only be its end."""
        return not self.is_expired() and not self._tcp.socket.is_readable()

    def close(self) -> None:
        self._tcp.socket.close()

    async def _fill(self) -> None:
        try:
            data = await self._receive()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise self.broken(_reason(exc)) from exc
        if not data:
            if not self._answer.feed_end():
                what = "the answer was complete" if self.answered else "an answer"
                raise self.broken(f"it was closed {'before' if self.answered else 'without'} {what}")
            return
        self.answered = True
        try:
            self._answer.feed(data)
        except InvalidAnswerError as exc:
            message = f"the answer of {self.origin} is not valid HTTP ({exc})"
            raise ProviderError(ErrorCode.PROVIDER_PROTOCOL, message) from exc

    # Without TLS the socket is used directly: trio's methods have a checkpoint before and after each system call, which
    # costs more than the call. The one in which we wait for the answer is enough.

    async def _send_all(self, data: bytes) -> None:
        if self._stream is self._tcp:
            try:
                data = data[os.write(self._tcp.socket.fileno(), data) :]
            except BlockingIOError:
                pass
            except OSError as exc:
                raise trio.BrokenResourceError from exc
        if data:
            await self._stream.send_all(data)

    async def _receive(self) -> bytes:
        if self._stream is not self._tcp:
            return bytes(await self._stream.receive_some(READ_SIZE))
        while True:
            if self._tcp.socket.fileno() == -1:
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(self._tcp.socket)
            with suppress(BlockingIOError):  # a false alarm
                return os.read(self._tcp.socket.fileno(), READ_SIZE)

    def broken(self, reason: str) -> ProviderError:
        """The error for a connection that ended by itself."""
        message = f"the connection to {self.origin} broke ({reason})"
        return ProviderError(ErrorCode.PROVIDER_UNREACHABLE, message, retryable=True)


def _cannot_connect(origin: Origin, reason: str, *, retryable: bool = True) -> CannotConnectError:
    message = f"cannot connect to {origin} ({reason})"
    return CannotConnectError(ErrorCode.PROVIDER_UNREACHABLE, message, retryable=retryable)


def _reason(exc: BaseException) -> str:
    """The innermost cause, in the system's words: trio wraps what happened at each address of a host."""
    if isinstance(exc, BaseExceptionGroup):
        return _reason(exc.exceptions[0])
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError):
        return f"TLS: {(exc.reason or str(exc)).lower().replace('_', ' ')}"
    if isinstance(exc, socket.gaierror):
        return (
            "the name of the host is unknown" if exc.errno == socket.EAI_NONAME else (exc.strerror or str(exc)).lower()
        )
    if isinstance(exc, OSError) and exc.errno is not None and exc.errno in errno.errorcode:
        return os.strerror(exc.errno).lower()
    cause = exc.__cause__ or exc.__context__
    return _reason(cause) if cause is not None else str(exc) or type(exc).__name__
