"""The least that a job can cost on the daemon's libraries: requests, model calls, commits, and nothing else.

A bare ASGI app on the daemon's own HTTP server, its connections to model servers, and SQLite with the daemon's settings.
It has no pipelines, no recovery, and of events only the bytes. Run as a process of its own.

    POST /job?calls=N      a commit, N calls one after the other with a commit behind each, and an answer
    POST /fanout?calls=N   a commit, N calls at the same time, a commit, and an answer
    POST /relay            a call whose pieces are committed one by one; the answer is its name
    GET  /relay/NAME       the pieces of that call as they are committed, for any number of followers
    POST /stream           a commit, and then as /relay and its first follower in one
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import trio

from benchmarks.processes import free_port
from pipeline_engine.api.serving import ServeSettings, open_listeners, serve
from pipeline_engine.listen_addresses import TcpAddress
from pipeline_engine.providers.transport import HttpClient, Network, RawAnswer

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


class Relay:
    """One call whose pieces many follow: they are woken when a piece is committed."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ended = False
        self._changed = trio.Event()

    async def run(self, app: App, body: bytes) -> None:
        async with app.calling(body) as answer:
            while piece := await answer.receive():
                await app.log.append(1)
                self.pieces.append(piece)
                self._notify()
        self.ended = True
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def follow(self, send: Any) -> None:
        headers = [(b"content-type", b"application/x-ndjson")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        place = 0
        while place < len(self.pieces) or not self.ended:
            if place == len(self.pieces):
                await self._changed.wait()
                continue
            body = b"".join(self.pieces[place:])
            place = len(self.pieces)
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class App:
    def __init__(self, log: Log, provider_port: int, nursery: trio.Nursery) -> None:
        self.log = log
        self._nursery = nursery
        self._client = HttpClient(network=Network(proxies={}))
        self._url = f"http://127.0.0.1:{provider_port}/v1/chat/completions"
        self._relays: list[Relay] = []

    def calling(self, body: bytes) -> AbstractAsyncContextManager[RawAnswer]:
        headers = {"content-type": "application/json"}
        return self._client.send("POST", self._url, headers=headers, content=body, connect_timeout_s=10)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        _, kind, *name = scope["path"].split("/")
        if name:
            await self._relays[int(name[0])].follow(send)
            return
        body = (await receive())["body"]
        calls = int(scope["query_string"].partition(b"=")[2] or 1)
        await self.log.append(1)
        if kind == "stream":
            relay = Relay()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay.run, self, body)
                await relay.follow(send)
        elif kind == "relay":
            self._relays.append(Relay())
            self._nursery.start_soon(self._relays[-1].run, self, body)
            await self._answer(send, b"%d" % (len(self._relays) - 1))
        elif kind == "fanout":
            async with trio.open_nursery() as nursery:
                for _ in range(calls):
                    nursery.start_soon(self._call, body)
            await self.log.append(ROWS * calls)
            await self._answer(send, LINE)
        else:
            for _ in range(calls):
                await self._call(body)
                await self.log.append(ROWS)
            await self._answer(send, LINE)

    async def _call(self, body: bytes) -> None:
        async with self.calling(body) as answer:
            while await answer.receive():
                pass

    @staticmethod
    async def _answer(send: Any, body: bytes) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def main(provider_port: int, directory: Path) -> None:
    log = Log(directory / "floor.db")
    port = free_port()
    async with open_listeners([TcpAddress("127.0.0.1", port)]) as listeners, trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        app = App(log, provider_port, nursery)
        await nursery.start(partial(serve, app, listeners, settings=ServeSettings(), stop=trio.Event()))
        print(port, flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        trio.run(main, int(sys.argv[1]), Path(scratch))
