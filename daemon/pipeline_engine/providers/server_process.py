"""A model server as a child process: started, waited for until it answers, and ended."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import trio

from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.models import ProviderProfile
from pipeline_engine.providers.addresses import with_port, without_query
from pipeline_engine.providers.process import (
    ChildProcess,
    EndGrace,
    StartError,
    base_environment,
    describe_exit,
    open_child,
)
from pipeline_engine.providers.supervisor import CANNOT_START
from pipeline_engine.providers.tool_output import Tail
from pipeline_engine.providers.transport import HttpClient, Network

_log = logging.getLogger(__name__)

PORT = "{port}"  # in a command: the number of a free port
GRACE = 5.0  # seconds between SIGTERM and SIGKILL
OUTPUT_BYTES = 4 * 1024  # of what the server wrote last are shown when it fails
LAST_LINES = 3  # of them in the message

FIRST_PAUSE = 0.01  # seconds between two looks whether the server is ready; half as long again each time …
LAST_PAUSE = 1.0  # … up to this
POLL_TIMEOUT = 5.0  # seconds: a server that is busy loading may accept a connection and not answer

_DEFAULT_PORTS = {"http": 80, "https": 443}
_SUPERVISOR = str(Path(__file__).with_name("supervisor.py"))
# -I and -S: it needs nothing but the standard library, and is up three times as fast.
_SUPERVISE = (sys.executable, "-I", "-S", _SUPERVISOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How a server is run: `extra.server` of a profile, with its `env` and `cwd`. Profiles that agree in it share it."""

    command: tuple[str, ...]
    ready: str
    start_timeout_s: float
    idle_stop_s: float
    env: tuple[tuple[str, str], ...]
    cwd: str | None

    @property
    def name(self) -> str:
        return self.command[0]

    @property
    def wants_port(self) -> bool:
        """Whether it runs at a free port instead of a fixed one."""
        return any(PORT in argument for argument in self.command)


def server_settings(profile: ProviderProfile) -> ServerSettings | None:
    """What the profile says about its server; None if it has none that we manage."""
    extra = profile.extra
    if extra.server is None:
        return None
    return ServerSettings(
        command=tuple(extra.server.command),
        ready=extra.server.ready,
        start_timeout_s=extra.server.start_timeout_s,
        idle_stop_s=extra.server.idle_stop_s,
        env=tuple(sorted(extra.env.items())),
        cwd=extra.cwd,
    )


class ServerProcess:
    """A server that was ready. `port` is the one that was found for it, None if its addresses are fixed."""

    def __init__(self, child: ChildProcess, *, name: str, port: int | None, output: Tail) -> None:
        self.port = port
        self._child = child
        self._name = name
        self._output = output

    async def wait(self) -> ProviderError:
        """The error that its end is for whoever needs it; returns when it has ended."""
        return _ended(self._name, await self._child.wait(), self._output, when="ended")


@asynccontextmanager
async def open_server_process(
    settings: ServerSettings,
    *,
    network: Network,
    environ: Mapping[str, str],
    limiter: trio.CapacityLimiter | None = None,
    end_grace: EndGrace | None = None,
) -> AsyncIterator[ServerProcess]:
    """Start the server and wait until it is ready; on leaving, it and all its children are ended.

    It gets PATH, HOME and LANG of `environ` and what its settings name. Raises ProviderError.
    """
    port = _free_port() if settings.wants_port else None
    ready = settings.ready if port is None else with_port(settings.ready, port)
    await _check_unused(ready)
    output = Tail(OUTPUT_BYTES)
    try:
        async with open_child(
            [*_SUPERVISE, *(argument.replace(PORT, str(port)) for argument in settings.command)],
            env={**base_environment(environ), **dict(settings.env)},
            cwd=settings.cwd or ".",
            stdin=None,
            on_stderr=output.append,
            grace=GRACE,
            end_grace=end_grace,
            limiter=limiter,
        ) as child:
            began = trio.current_time()
            await _wait_until_ready(child, settings, ready, output, network)
            _log.info("model server %s is ready after %.1f s", settings.name, trio.current_time() - began)
            yield ServerProcess(child, name=settings.name, port=port, output=output)
    except StartError as exc:
        raise ProviderError(ErrorCode.PROVIDER_UNREACHABLE, f"the model server could not be started: {exc}") from exc


async def _wait_until_ready(
    child: ChildProcess, settings: ServerSettings, ready: str, output: Tail, network: Network
) -> None:
    is_ready = False
    exit_code: int | None = None

    async def watch() -> None:
        nonlocal exit_code
        exit_code = await child.wait()
        startup.cancel_scope.cancel()

    with trio.move_on_after(settings.start_timeout_s):
        async with trio.open_nursery() as startup:
            startup.start_soon(watch)
            await _poll(ready, network)
            is_ready = True
            startup.cancel_scope.cancel()
    if exit_code is not None:
        raise _ended(settings.name, exit_code, output, when="ended before it was ready")
    if not is_ready:
        message = (
            f"the model server {settings.name} was not ready within {settings.start_timeout_s:g} s:"
            f" {without_query(ready)} did not answer 200 (server.start_timeout_s)"
        )
        raise _error(message, output, retryable=True)


async def _poll(ready: str, network: Network) -> None:
    """Return when the address answers 200."""
    client = HttpClient(network=network)
    pause = FIRST_PAUSE
    try:
        while not await _answers(client, ready):
            await trio.sleep(pause)
            pause = min(1.5 * pause, LAST_PAUSE)
    finally:
        client.close()


async def _answers(client: HttpClient, ready: str) -> bool:
    with trio.move_on_after(POLL_TIMEOUT):
        try:
            async with client.send("GET", ready, headers={}, content=b"", connect_timeout_s=POLL_TIMEOUT) as answer:
                return answer.status == 200
        except ProviderError:  # nobody listens there yet, or not with HTTP
            return False
    return False


async def _check_unused(ready: str) -> None:
    """Raise ProviderError if somebody listens where the server shall: their answer would be taken for the server's."""
    parts = urlsplit(ready)
    with trio.move_on_after(POLL_TIMEOUT):
        try:
            stream = await trio.open_tcp_stream(parts.hostname or "", parts.port or _DEFAULT_PORTS[parts.scheme])
        except OSError:
            return
        await trio.aclose_forcefully(stream)
        message = f"another program listens at {parts.netloc} already, where the model server is to be started"
        raise ProviderError(ErrorCode.PROVIDER_UNREACHABLE, message, retryable=True)


def _free_port() -> int:
    """Raises ProviderError."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port
    except OSError as exc:
        message = f"no port could be found for the model server: {exc.strerror}"
        raise ProviderError(ErrorCode.PROVIDER_UNREACHABLE, message, retryable=True) from exc


def _ended(name: str, exit_code: int, output: Tail, *, when: str) -> ProviderError:
    # 128 and more is how the supervisor, like a shell, tells of a signal.
    code = 128 - exit_code if exit_code > 128 else exit_code
    message = f"the model server {name} {when}: it {describe_exit(code)}"
    return _error(message, output, retryable=exit_code != CANNOT_START)


def _error(message: str, output: Tail, *, retryable: bool) -> ProviderError:
    text = output.text.strip()
    if text:
        message += f"; it wrote last: {' / '.join(text.splitlines()[-LAST_LINES:])}"
    details = {"stderr": text} if text else None
    return ProviderError(ErrorCode.PROVIDER_UNREACHABLE, message, retryable=retryable, details=details)
