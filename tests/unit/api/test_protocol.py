"""The protocol without a socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio

from pipeline_engine.api.serving.protocol import HttpProtocol, Service
from pipeline_engine.api.serving.settings import ServeSettings


async def test_a_body_in_tiny_chunks_lets_others_run() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass

    async def send(event: Any) -> None:
        """To no socket."""

    async def write(pieces: Sequence[bytes]) -> None:
        """To no socket."""

    turns = 0
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with trio.open_nursery() as nursery:
        protocol = HttpProtocol(
            Service(app, ServeSettings()),
            requests=nursery,
            client=None,
            server=("127.0.0.1", 80),
            send=send,
            write=write,
        )
        protocol.receive(head + b"1\r\nx\r\n" * 10_000)
        processed = trio.Event()

        async def process() -> None:
            await protocol.process()
            processed.set()

        nursery.start_soon(process)
        while not processed.is_set():
            turns += 1
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert protocol.body_bytes == 10_000
    assert turns > 100
