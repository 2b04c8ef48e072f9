"""The least that a job can cost on the daemon's libraries: a request, a model call and two commits, and nothing else.

A bare ASGI app on the daemon's own HTTP server, its connections to model servers, and SQLite with the daemon's settings.
It has no pipelines, no events as they happen, no followers and no recovery. Run as a process of its own.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import trio

from benchmarks.processes import free_port
from pipeline_engine.api.serving import ServeSettings, open_listeners, serve
from pipeline_engine.listen_addresses import TcpAddress
from pipeline_engine.providers.transport import HttpClient, Network

ROWS = 14  # events of a job of one step and one piece
LINE = b"x" * 400


class Log:
    """Rows in a table, each batch of them a commit in a thread; those who wait share a commit."""

    def __init__(self, path: Path) -> None:
        self._connection = apsw.Connection(str(path))
        self._connection.pragma("journal_mode", "wal")
        self._connection.pragma("synchronous", "normal")
        self._connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, line BLOB NOT NULL)")
        self._waiting: list[tuple[int, trio.Event]] = []
        self._wake = trio.Event()

    async def append(self, rows: int) -> None:
        done = trio.Event()
        self._waiting.append((rows, done))
        self._wake.set()
        await done.wait()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            batch, self._waiting = self._waiting, []
            await trio.to_thread.run_sync(self._write, sum(rows for rows, _ in batch))
            for _, done in batch:
                done.set()

    def _write(self, rows: int) -> None:
        with self._connection:
            self._connection.executemany("INSERT INTO events (line) VALUES (?)", [(LINE,)] * rows)


async def main(provider_port: int, directory: Path) -> None:
    log = Log(directory / "floor.db")
    client = HttpClient(network=Network(proxies={}))
    url = f"http://127.0.0.1:{provider_port}/v1/chat/completions"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        body = (await receive())["body"]
        await log.append(1)
        async with client.send(
            "POST", url, headers={"content-type": "application/json"}, content=body, connect_timeout_s=10
        ) as answer:
            while await answer.receive():
                pass
        await log.append(ROWS)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(LINE))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": LINE})

    port = free_port()
    async with open_listeners([TcpAddress("127.0.0.1", port)]) as listeners, trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        await nursery.start(partial(serve, app, listeners, settings=ServeSettings(), stop=trio.Event()))
        print(port, flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        trio.run(main, int(sys.argv[1]), Path(scratch))
