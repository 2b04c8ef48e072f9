"""As much HTTP/1.1 as the benchmarks need: a client whose own cost is small, and the reading of requests."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import trio

RECEIVE_SIZE = 256 * 1024  # bytes


async def read_request(stream: trio.SocketStream, buffer: bytearray) -> tuple[str, bytes] | None:
    """The target and the body of the next request; None at the end."""
    while (end := buffer.find(b"\r\n\r\n")) < 0:
        if not (data := await stream.receive_some(RECEIVE_SIZE)):
            return None
        buffer += data
    head = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    lengths = [int(line.partition(":")[2]) for line in head if line.lower().startswith("content-length:")]
    stop = end + 4 + sum(lengths)
    while len(buffer) < stop:
        if not (data := await stream.receive_some(RECEIVE_SIZE)):
            return None
        buffer += data
    body = bytes(buffer[end + 4 : stop])
    del buffer[:stop]
    return head[0].split(" ")[1], body


class Answer:
    """A response whose body is still to be read."""

    def __init__(self, stream: trio.SocketStream, head: bytes, rest: bytes) -> None:
        self.status = int(head[9:12])
        lowered = head.lower()
        self._stream = stream
        self._buffer = bytearray(rest)
        self._chunked = b"transfer-encoding: chunked" in lowered
        _, found, value = lowered.partition(b"content-length:")
        self._left = int(value.split(b"\r\n", 1)[0]) if found else 0
        self.keeps = b"connection: close" not in lowered

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body as it arrives."""
        if not self._chunked:
            while self._left:
                if not self._buffer:
                    self._buffer += await self._receive()
                self._left -= len(self._buffer)
                piece = bytes(self._buffer)
                self._buffer.clear()
                yield piece
            return
        while True:
            while (end := self._buffer.find(b"\r\n")) < 0:
                self._buffer += await self._receive()
            size = int(self._buffer[:end], 16)
            while len(self._buffer) < end + size + 4:
                self._buffer += await self._receive()
            piece = bytes(self._buffer[end + 2 : end + 2 + size])
            del self._buffer[: end + size + 4]
            if not size:
                return
            yield piece

    async def lines(self) -> AsyncGenerator[list[bytes], None]:
        """Whole lines, those together that arrived together."""
        rest = b""
        async for piece in self.pieces():
            *lines, rest = (rest + piece).split(b"\n")
            if lines:
                yield lines

    async def read(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])

    async def _receive(self) -> bytes:
        if data := await self._stream.receive_some(RECEIVE_SIZE):
            return bytes(data)
        raise ConnectionError("the server closed the connection in the middle of an answer")


class Client:
    """One server, over connections that are used again."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._idle: list[trio.SocketStream] = []

    @asynccontextmanager
    async def open(self, method: str, path: str, value: Any = None) -> AsyncGenerator[Answer, None]:
        """Send a request; its connection is closed unless `read` has taken the whole answer."""
        body = b"" if value is None else json.dumps(value).encode()
        kind = b"content-type: application/json\r\n" if value is not None else b""
        head = b"%b %b HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n%bcontent-length: %d\r\n\r\n"
        stream = self._idle.pop() if self._idle else await self._connect()
        try:
            await stream.send_all(head % (method.encode(), path.encode(), self.port, kind, len(body)) + body)
            answer = await _read_head(stream)
            yield answer
        except BaseException:
            stream.socket.close()
            raise
        if answer.keeps:
            self._idle.append(stream)
        else:
            stream.socket.close()

    async def call(self, method: str, path: str, value: Any = None) -> Any:
        """The JSON of an answer; RuntimeError unless its status is 2xx."""
        async with self.open(method, path, value) as answer:
            data = await answer.read()
        if not 200 <= answer.status < 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {data[:300]!r}")
        return json.loads(data) if data else None

    def close(self) -> None:
        for stream in self._idle:
            stream.socket.close()
        self._idle.clear()

    async def _connect(self) -> trio.SocketStream:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream


async def _read_head(stream: trio.SocketStream) -> Answer:
    received = b""
    while b"\r\n\r\n" not in received:
        if not (data := await stream.receive_some(RECEIVE_SIZE)):
            raise ConnectionError("the server closed the connection without an answer")
        received += data
    head, _, rest = received.partition(b"\r\n\r\n")
    return Answer(stream, head, rest)
