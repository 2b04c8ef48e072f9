"""The API on an engine of `engine_setting`, called without sockets: as ASGI, on trio's clock.

async with open_api() as api:
    answer = await api.ask("GET", "/v1/jobs")
    async with api.open("GET", "/v1/jobs/ID/stream") as response:
        async for piece in response.pieces(): ...
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
import trio.testing
from tests.engine_setting import Json, Script, ScriptedRegistry, Setting, open_setting

from pipeline_engine.api.app import create_app
from pipeline_engine.api.context import Api
from pipeline_engine.api.serving.asgi import AsgiApp
from pipeline_engine.api.serving.exchange import DISCONNECT_SCOPE
from pipeline_engine.assembly import LocalEngine
from pipeline_engine.catalog import Catalog
from pipeline_engine.config import Config, LogLevel
from pipeline_engine.config_loader import load_config
from pipeline_engine.engine import EngineLimits
from pipeline_engine.pipelines import RegisteredPipeline
from pipeline_engine.store.access import StoreAccess
from pipeline_engine.store.artifacts import ArtifactFiles
from pipeline_engine.store.base import Store

NOWHERE = {"XDG_CONFIG_HOME": "/nonexistent", "XDG_STATE_HOME": "/nonexistent", "HOME": "/nonexistent"}


@dataclass(slots=True)
class Response:
    """One response, as far as it has come."""

    status: int
    headers: dict[str, str]
    _body: trio.MemoryReceiveChannel[bytes]

    async def pieces(self) -> AsyncIterator[bytes]:
        async for piece in self._body:
            yield piece

    async def next_piece(self) -> bytes:
        return await self._body.receive()

    async def read(self) -> bytes:
        return b"".join([piece async for piece in self._body])


@dataclass(slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Json:
        error: Json = self.json["error"]
        return error


@dataclass(slots=True)
class ApiSetting:
    app: AsgiApp
    api: Api
    setting: Setting
    log_levels: list[LogLevel] = field(default_factory=list)

    @asynccontextmanager
    async def open(
        self, method: str, target: str, body: object = None, *, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[Response, None]:
        """Send a request (a body of bytes as it is, any other as JSON); the client leaves at the end of the block."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        path, _, query = target.partition("?")
        given = {"host": "localhost", "content-type": "application/json", **(headers or {})}
        disconnected = trio.CancelScope()
        scope = {
            "type": "http",
            "extensions": {DISCONNECT_SCOPE: lambda: disconnected},
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8085),
        }
        requests = [{"type": "http.request", "body": data, "more_body": False}]
        left = trio.Event()
        head = trio.Event()
        started: Json = {}
        to_reader, pieces = trio.open_memory_channel[bytes](0)

        async def receive() -> Json:
            await trio.lowlevel.checkpoint()
            if not requests:
                await left.wait()
                return {"type": "http.disconnect"}
            return requests.pop()

        async def send(message: Mapping[str, Any]) -> None:
            await trio.lowlevel.checkpoint()
            if message["type"] == "http.response.start":
                started.update(message)
                head.set()
            elif message.get("body"):
                await to_reader.send(message["body"])

        async def run() -> None:
            with to_reader:
                await self.app(scope, receive, send)
            head.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await head.wait()
            fields = {name.decode().lower(): value.decode() for name, value in started["headers"]}
            yield Response(started["status"], fields, pieces)
            left.set()
            disconnected.cancel()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    async def ask(
        self, method: str, target: str, body: object = None, *, headers: Mapping[str, str] | None = None
    ) -> Answer:
        async with self.open(method, target, body, headers=headers) as response:
            return Answer(response.status, response.headers, await response.read())

    async def submit(self, steps: Sequence[Json], sources: Sequence[str] = (), **request: Any) -> Json:
        answer = await self.ask("POST", "/v1/jobs", body_of(steps, sources, **request))
        assert answer.status == 202, answer.body
        job: Json = answer.json["job"]
        return job

    async def run(self, steps: Sequence[Json], sources: Sequence[str] = (), **request: Any) -> Json:
        answer = await self.ask("POST", "/v1/jobs", body_of(steps, sources, mode="sync", **request))
        assert answer.status == 200, answer.body
        job: Json = answer.json["job"]
        return job

    async def events(self, job_id: str, after_seq: int = 0) -> list[Json]:
        answer = await self.ask("GET", f"/v1/jobs/{job_id}/stream?after_seq={after_seq}")
        assert answer.status == 200, answer.body
        return ndjson(answer.body)


def body_of(steps: Sequence[Json], sources: Sequence[str] = (), **request: Any) -> Json:
    """A request for a job with an inline pipeline."""
    given = [{"kind": "note", "label": "s", "content": text} for text in sources]
    return {"pipeline": {"type": "test.v1", "steps": list(steps)}, "input": {"sources": given}, **request}


def ndjson(data: bytes) -> list[Json]:
    assert data == b"" or data.endswith(b"\n")
    return [json.loads(line) for line in data.split(b"\n") if line]


def configuration(**overrides: object) -> Config:
    """The defaults, and dotted keys over them, with `__` for the dot."""
    return load_config(environ=NOWHERE, overrides={key.replace("__", "."): value for key, value in overrides.items()})


@asynccontextmanager
async def open_api(
    *,
    scripts: Mapping[str, Sequence[Script]] | None = None,
    registry: ScriptedRegistry | None = None,
    config: Config | None = None,
    limits: EngineLimits | None = None,
    pipelines: Sequence[RegisteredPipeline] = (),
    artifacts: Path = Path("/nonexistent"),
    store: Store | None = None,
    starting: bool = False,
) -> AsyncGenerator[ApiSetting, None]:
    registry = registry or ScriptedRegistry(scripts)
    async with open_setting(
        store=store, registry=registry, limits=limits, pipelines=pipelines, artifacts=artifacts
    ) as setting:
        access = StoreAccess(setting.store, threads=4)
        checker = setting.engine.admission.checker
        local = LocalEngine(
            kill_children=lambda: None,
            engine=setting.engine,
            catalog=Catalog(
                pipelines=setting.pipelines, registry=registry, checker=checker, access=access, writer=setting.writer
            ),
            registry=registry,
            checker=checker,
            artifacts=ArtifactFiles(artifacts),
            access=access,
            writer=setting.writer,
            hide_secrets=lambda config: None,
            use_settings=lambda config: None,
        )
        levels: list[LogLevel] = []
        api = Api(config=config or configuration(), local=None if starting else local, use_log_level=levels.append)
        yield ApiSetting(create_app(api), api, setting, levels)
