"""A scripted model server: the name of the model says how it answers. Run as a process of its own.

`tokens=8,first=0,every=0` sends so many tokens, the first after `first` and the others `every` milliseconds apart;
`end=reset`, `end=stall` and `end=garbage` break an answer after its tokens. Each token is `<MICROSECONDS> `, the moment
at which it was made on this machine's monotonic clock, so that whoever reads it knows how long it was on its way.

    POST /v1/chat/completions   as OpenAI's API, streamed
    GET  /closed                when each unfinished answer lost its client, in microseconds, as a JSON list
"""

from __future__ import annotations

import json
import random
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import trio

from benchmarks.http import read_request

PIECE = b'data: {"id":"c","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":"<%d> "}}]}\n\n'
LAST = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
AT_ONCE = 500  # tokens in one chunk, where there is no pause between them


def now_us() -> int:
    return time.monotonic_ns() // 1000


@dataclass(frozen=True, slots=True)
class Script:
    """What a model's name asks for; times in milliseconds."""

    tokens: int = 8
    first: float = 0
    every: float = 0
    end: str = "whole"

    @classmethod
    def parse(cls, name: str) -> Script:
        given = dict(part.split("=", 1) for part in name.split(",") if "=" in part)
        return cls(
            tokens=int(given.get("tokens", 8)),
            first=float(given.get("first", 0)),
            every=float(given.get("every", 0)),
            end=given.get("end", "whole"),
        )


@dataclass(slots=True)
class Provider:
    closed_at_us: list[int] = field(default_factory=list)
    random: random.Random = field(default_factory=lambda: random.Random(1))

    async def serve(self, stream: trio.SocketStream) -> None:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = bytearray()
        try:
            while (request := await read_request(stream, buffer)) is not None:
                target, body = request
                if target == "/closed":
                    text = json.dumps(self.closed_at_us).encode()
                    await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text))
                elif not await self._answer(stream, json.loads(body)):
                    break
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _answer(self, stream: trio.SocketStream, request: dict[str, Any]) -> bool:
        script = Script.parse(request["model"])
        if not script.first and not script.every and script.end == "whole":
            await self._send(stream, script)
            return True
        whole = False

        async def send() -> None:
            nonlocal whole
            whole = await self._send(stream, script)
            watching.cancel()

        with trio.CancelScope() as watching:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await trio.lowlevel.wait_readable(stream.socket)  # a client that waits for an answer sends nothing
                self.closed_at_us.append(now_us())
                watching.cancel()
        return whole

    async def _send(self, stream: trio.SocketStream, script: Script) -> bool:
        await trio.sleep(script.first / 1000)
        if not script.every:
            await self._send_at_once(stream, script)
        else:
            begin = trio.current_time()
            for index in range(script.tokens):
                await trio.sleep_until(begin + index * script.every / 1000)
                await stream.send_all((HEAD if index == 0 else b"") + _chunk(PIECE % now_us()))
        if script.end == "whole":
            if script.every:
                await stream.send_all(_chunk(LAST) + b"0\r\n\r\n")
            return True
        if script.end == "stall":
            await trio.sleep_forever()
        if script.end == "garbage":
            await stream.send_all(self.random.randbytes(self.random.randrange(1, 200)))
            await stream.send_eof()
            return False
        await trio.sleep(0.02)  # what was sent must have been read: a reset discards the rest
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    @staticmethod
    async def _send_at_once(stream: trio.SocketStream, script: Script) -> None:
        for start in range(0, max(script.tokens, 1), AT_ONCE):
            count = min(AT_ONCE, script.tokens - start)
            parts = [HEAD] if start == 0 else []
            if count > 0:
                parts.append(_chunk(b"".join(PIECE % now_us() for _ in range(count))))
            if start + AT_ONCE >= script.tokens and script.end == "whole":
                parts.append(_chunk(LAST) + b"0\r\n\r\n")
            await stream.send_all(b"".join(parts))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def main(port: int) -> None:
    provider = Provider()
    [listener] = await trio.open_tcp_listeners(port, host="127.0.0.1", backlog=1024)
    print(listener.socket.getsockname()[1], flush=True)
    await trio.serve_listeners(provider.serve, [listener])


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 0)
