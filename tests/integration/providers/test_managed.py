"""Model servers as real child processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.provider_calls import chat_call, collect

from pipeline_engine.decoding import Secret
from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.models import ManagedServer, ProviderExtra, ProviderKind, ProviderOverride, ProviderProfile
from pipeline_engine.providers import server_process
from pipeline_engine.providers.base import Chunk, Completion, ProviderCall
from pipeline_engine.providers.process import EndGrace
from pipeline_engine.providers.registry import ProviderRegistry, open_registry

# A model server of a few lines: `/health` is 503 for a while, then 200; a chat answers with the process id. `stall` as
# the prompt never ends, `die` kills the server in the middle of its answer.
SERVER = """
import http.server, json, os, signal, subprocess, sys, time
mode = sys.argv[2] if len(sys.argv) > 2 else ""
if mode == "crash":
    sys.exit("line one\\nline two\\nno such model: key sk-secret")
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "parent":
    subprocess.Popen(["sleep", os.environ["MARK"]])
began = time.monotonic()

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self, status, body):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        ready = mode != "never" and time.monotonic() - began > 0.1
        self.reply(200 if ready else 503, b"{}")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["messages"][-1]["content"]
        if prompt in ("die", "stall"):
            self.send_response(200)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            data = b'data: {"choices":[{"delta":{"content":"x"}}]}\\n\\n'
            self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(data), data))
            self.wfile.flush()
            if prompt == "stall":
                time.sleep(60)
            sys.stderr.write("out of memory\\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        text = os.environ.get(prompt) if prompt.isupper() else str(os.getpid())
        self.reply(200, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).encode())

    def log_message(self, *args):
        pass

class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        pass  # a client that leaves is none, and what it writes last is looked at

print("listening", flush=True)
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class NoTool:
    @asynccontextmanager
    async def stream(self, call: ProviderCall) -> AsyncIterator[AsyncIterator[list[Chunk | Completion]]]:
        raise NotImplementedError
        yield


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "server.py"
    path.write_text(SERVER, encoding="utf-8")
    return path


Make = Callable[..., ProviderProfile]


@pytest.fixture
def make(script: Path) -> Make:
    """A profile with a managed server; `{port}` unless a port is given."""

    def make(
        mode: str = "",
        *,
        port: int | None = None,
        profile_id: str = "p",
        env: dict[str, str] | None = None,
        **server: Any,
    ) -> ProviderProfile:
        place = "127.0.0.1" if port is None else f"127.0.0.1:{port}"
        command = [sys.executable, "-I", str(script), "{port}" if port is None else str(port), mode]
        settings = {"command": command, "ready": f"http://{place}/health", "start_timeout_s": 10.0, **server}
        return ProviderProfile(
            id=profile_id,
            kind=ProviderKind.OPENAI,
            base_uri=f"http://{place}/v1",
            api_key=Secret("sk-secret"),
            extra=ProviderExtra(server=ManagedServer(**settings), env=env or {}),
        )

    return make


@asynccontextmanager
async def registry_of(*profiles: ProviderProfile, end_grace: EndGrace | None = None) -> AsyncIterator[ProviderRegistry]:
    environ = {**os.environ, "FROM_DAEMON": "1"}
    async with open_registry(profiles, local_tool=NoTool(), environ=environ, server_end_grace=end_grace) as registry:
        yield registry


async def ask(
    registry: ProviderRegistry, prompt: str = "hello", profile_id: str = "p", override: ProviderOverride | None = None
) -> str:
    call = chat_call(registry.resolve(profile_id, override), prompt)
    return (await collect(registry.stream(call, job_id="job"))).text


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in ("Z", "X")


async def until_dead(pid: int) -> None:
    with trio.fail_after(10):
        while is_alive(pid):  # noqa: ASYNC110 - the kernel tells only parents
            await trio.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_calls_of_several_jobs_and_profiles_share_a_server_that_ends_with_the_registry(make: Make) -> None:
    async with registry_of(make(), make(profile_id="q")) as registry:
        answers: list[str] = []

        async def one(profile_id: str) -> None:
            answers.append(await ask(registry, profile_id=profile_id))

        async with trio.open_nursery() as nursery:
            for profile_id in "ppqq":
                nursery.start_soon(one, profile_id)
        assert len(set(answers)) == 1
        pid = int(answers[0])
        assert is_alive(pid)
    assert not is_alive(pid)


async def test_the_start_counts_against_no_timeout_of_the_call(make: Make) -> None:
    profile = make(port=free_port())
    async with registry_of(profile) as registry:
        short = ProviderOverride(connect_timeout_s=0.09, first_token_timeout_s=0.09, timeout_s=0.09)
        assert int(await ask(registry, override=short)) > 0


async def test_a_server_that_dies_fails_its_call_retryably_and_the_next_call_starts_it(make: Make) -> None:
    async with registry_of(make()) as registry:
        first = await ask(registry)
        with pytest.raises(
            ProviderError, match="was killed by SIGKILL; it wrote last: listening / out of memory"
        ) as caught:
            await ask(registry, "die")
        assert (caught.value.code, caught.value.retryable) == (ErrorCode.PROVIDER_UNREACHABLE, True)
        assert not is_alive(int(first))
        assert await ask(registry) != first


async def test_a_server_that_died_unnoticed_is_started_again(make: Make) -> None:
    async with registry_of(make()) as registry:
        first = await ask(registry)
        os.kill(int(first), signal.SIGKILL)
        await until_dead(int(first))
        await trio.sleep(0.3)
        assert await ask(registry) != first


async def test_an_idle_server_is_stopped(make: Make) -> None:
    async with registry_of(make(idle_stop_s=0.1)) as registry:
        await until_dead(int(await ask(registry)))


async def test_a_stop_that_may_not_wait_kills_a_server_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "GRACE", 600.0)
    end_grace = EndGrace()
    with trio.fail_after(20):
        async with registry_of(make("stubborn"), end_grace=end_grace) as registry:
            pid = int(await ask(registry))
            end_grace.limit(0)
    assert not is_alive(pid)


@pytest.mark.parametrize("mode", ["stubborn", "parent"])
async def test_nothing_is_left_of_a_server_that_will_not_go(
    make: Make, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_process, "GRACE", 0.2)
    mark = f"300.{os.getpid()}"
    async with registry_of(make(mode, env={"MARK": mark})) as registry:
        pid = int(await ask(registry))
    assert not is_alive(pid)
    commands = []
    for path in processes():
        with suppress(OSError):  # others come and go
            commands.append(path.read_bytes())
    assert not any(mark.encode() in command for command in commands)


def processes() -> list[Path]:
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists() and is_alive(int(path.parent.name))]


async def test_a_server_that_fails_to_start_is_explained_without_secrets(make: Make) -> None:
    async with registry_of(make("crash")) as registry:
        with pytest.raises(ProviderError, match="ended before it was ready: it exited with code 1") as caught:
            await ask(registry)
    error = caught.value
    assert error.message.endswith("it wrote last: line one / line two / no such model: key ***")
    assert (error.code, error.retryable) == (ErrorCode.PROVIDER_UNREACHABLE, True)
    assert error.details == {"stderr": "line one\nline two\nno such model: key ***"}


async def test_a_command_that_does_not_exist_is_final(make: Make) -> None:
    async with registry_of(make(command=["/no/such/server"])) as registry:
        with pytest.raises(ProviderError, match="/no/such/server: No such file or directory") as caught:
            await ask(registry)
    assert not caught.value.retryable


async def test_a_server_that_never_gets_ready_is_ended(make: Make) -> None:
    async with registry_of(make("never", start_timeout_s=0.5)) as registry:
        with pytest.raises(
            ProviderError, match=r"not ready within 0.5 s: http://127.0.0.1:\d+/health did not"
        ) as caught:
            await ask(registry)
    assert caught.value.retryable


async def test_somebody_elses_server_is_not_taken_for_ours(make: Make) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listeners[0]:
        port = listeners[0].socket.getsockname()[1]
        async with registry_of(make(port=port)) as registry:
            with pytest.raises(ProviderError, match=f"another program listens at 127.0.0.1:{port} already"):
                await ask(registry)


async def test_a_call_to_another_origin_starts_nothing(make: Make) -> None:
    async with registry_of(make(command=["/no/such/server"])) as registry:
        nowhere = ProviderOverride(base_uri=f"http://127.0.0.1:{free_port()}")
        with pytest.raises(ProviderError, match="cannot connect to"):
            await ask(registry, override=nowhere)


async def test_the_environment_is_small(make: Make) -> None:
    async with registry_of(make(env={"MINE": "yes"})) as registry:
        assert await ask(registry, "MINE") == "yes"
        assert await ask(registry, "PATH") == os.environ["PATH"]
        with pytest.raises(ProviderError):
            await ask(registry, "FROM_DAEMON")


async def test_a_changed_profile_gets_a_new_server_at_the_same_address_when_the_old_one_is_free(make: Make) -> None:
    port = free_port()
    async with registry_of(make(port=port)) as registry:
        first = await ask(registry)
        registry.put(make(port=port))
        assert await ask(registry) == first  # the profile is the same
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                stalled = registry.stream(chat_call(registry.resolve("p"), "stall"), job_id="j")
                async with stalled as batches:
                    await anext(batches)
                    registry.put(make(port=port, env={"CHANGED": "yes"}))
                    answers: list[str] = []

                    async def second() -> None:
                        answers.append(await ask(registry, "CHANGED"))

                    nursery.start_soon(second)
                    await trio.sleep(0.3)
                    assert is_alive(int(first))
                    assert answers == []
                    scope.cancel()
        assert answers == ["yes"]
        assert not is_alive(int(first))


DAEMON = """
import os, sys, trio
from pipeline_engine.models import ManagedServer, ProviderExtra, ProviderKind, ProviderProfile
from pipeline_engine.providers.registry import open_registry
from tests.provider_calls import chat_call, collect

async def main():
    command = [sys.executable, "-I", sys.argv[1], "{port}", "parent"]
    server = ManagedServer(command=command, ready="http://127.0.0.1/health")
    extra = ProviderExtra(server=server, env={"MARK": sys.argv[2]})
    profile = ProviderProfile(id="p", kind=ProviderKind.OPENAI, base_uri="http://127.0.0.1", extra=extra)
    async with open_registry([profile], local_tool=None, environ=os.environ) as registry:
        answer = await collect(registry.stream(chat_call(registry.resolve("p")), job_id="j"))
        print(answer.text, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


def test_nothing_is_left_when_the_daemon_is_killed(script: Path) -> None:
    mark = f"301.{os.getpid()}"
    with subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(script), mark],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        encoding="utf-8",
    ) as daemon:
        assert daemon.stdout is not None
        pid = int(daemon.stdout.readline())
        assert is_alive(pid)
        daemon.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        left = []
        for path in processes():
            with suppress(OSError):
                left += [path] if mark.encode() in path.read_bytes() else []
        if not left and not is_alive(pid):
            return
        time.sleep(0.02)
    pytest.fail("the server outlived the daemon")
