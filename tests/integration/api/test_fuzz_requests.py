"""Raw bytes of every bad kind, at random: no answer is a server error, and others are served meanwhile and after.

FUZZ_REQUESTS says how many requests each seed makes against the server and against a daemon; FUZZ_SEEDS names the seeds.
`make fuzz` makes 10,000 of each.
"""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import trio
from quart import Response, request
from quart_trio import QuartTrio
from tests.daemon_process import DaemonProcess

from pipeline_engine.api.serving import Guard, GuardSettings, ServeSettings, host_names, open_listeners, serve
from pipeline_engine.decoding import Secret
from pipeline_engine.listen_addresses import TcpAddress

SEEDS = [int(seed) for seed in os.environ.get("FUZZ_SEEDS", "1,2,3").split(",")]
REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "400"))
CLIENTS = 40  # at a time
PATIENCE_S = 0.2  # a client waits so long for more of an answer, and longer where other answers take longer
ANSWER_S = 5.0  # a client that asks properly has its answer in this time, whatever the others send

METHODS = [
    b"GET",
    b"POST",
    b"PUT",
    b"PATCH",
    b"DELETE",
    b"HEAD",
    b"OPTIONS",
    b"TRACE",
    b"CONNECT",
    b"PRI",
    b"get",
    b"G\xffT",
    b"",
]
TARGETS = [
    b"/health", b"/stream", b"/echo", b"/nowhere", b"/", b"*", b"//evil.example", b"/%00%ff%2e%2e/", b"/a\x00b", b"/\xff", b"",
    b"http://localhost/health", b"http://evil.example/", b"http://", b"localhost:80", b"/health?" + b"q" * 5000, b"/ui/..%2f..",
    b"?", b"/%", b"http://[::1/", b"/health#x",
]  # fmt: skip
API_TARGETS = [
    b"/v1/jobs", b"/v1/jobs?stream=true", b"/v1/jobs?limit=\xff", b"/v1/jobs/job_1", b"/v1/jobs/%00/stream?after_seq=-1",
    b"/v1/jobs/job_1/events?wait_s=nan", b"/v1/jobs/job_1/artifacts/..%2f..%2fengine.db", b"/v1/jobs/\xff/cancel",
    b"/v1/jobs/job_1/rerun", b"/v1/config/pipelines/a%2fb", b"/v1/config/pipelines/validate", b"/v1/config/providers",
    b"/v1/config/engine", b"/metrics", b"/openapi.json", b"/health/ready",
]  # fmt: skip
VERSIONS = [b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"HTTP/1.", b"ICY", b"", b"HTTP/1.1 "]
HEADERS = [
    b"Host: localhost", b"Host: \xff", b"Host: evil.example", b"Host:", b"Host: localhost\r\nHost: localhost",
    b"Authorization: Bearer k", b"Authorization: Bearer \xff", b"Authorization: Basic", b"Origin: null",
    b"Origin: http://localhost", b"Origin: http://[", b"Sec-Fetch-Site: cross-site",
    b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 0", b"Content-Length: 99999999999999", b"Content-Length: 5, 5",
    b"Content-Length: 100", b"Content-Length: " + b"9" * 40,
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked, chunked",
    b"Content-Type: application/json", b"Content-Type: text/plain", b"Content-Type: \xff;;;=",
    b"Expect: 100-continue", b"Expect: \xff", b"Connection: close", b"Connection: keep-alive", b"Connection: \xff, ,",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: A",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    b"Sec-WebSocket-Protocol: \xff", b"Upgrade: \xff", b"Upgrade: TLS/1.0", b"Range: bytes=0-\xff", b"Cookie: \xff=\x80;;",
    b'If-None-Match: "', b"If-Modified-Since: \xff", b"Accept: \xff", b"X-Forwarded-For: \xff", b": empty", b" folded: x", b"no colon",
    b"A: " + b"x" * 70_000, b"\x00: x", b"X: a\x00b", b"X: a\rb",
]  # fmt: skip
BODIES = [
    b"", b"{}", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\nhello", b"ffffffffffffffffff\r\n", b"0\r\n\r\n", b"5\r\nhello",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    b"\r\n\r\n\r\n", b"\x81\xff\x00\x00", b"x" * 50_000,
]  # fmt: skip
JSON_BODIES = [
    b'{"pipeline":{"type":"t","steps":[{"id":"a","kind":"map","config":{"map":"identity"}}]},"mode":"sync"}',
    b'{"pipeline_type":"words.v1","input":{"sources":[{"content":"\\ud800"}]}}', b'{"pipeline_type":1e999}', b'{"pipeline_type":"words.v1"}', b"[" * 100_000,
    b'{"a":' * 2_000, b'{"pipeline":{"steps":[NaN]}}', b'{"log_level":"\xff"}', b'{"id":"p","kind":"openai","base_uri":"http://["}',
    b'{"pipeline_type":"words.v1","pipeline_type":"x"}', b"null", b'"', b"\xef\xbb\xbf{}", b"1" * 5_000,
]  # fmt: skip


def with_length(body: bytes) -> bytes:
    """The end of a head, and the body that it announces."""
    return b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def make_request(rng: random.Random, targets: list[bytes], usual: list[bytes]) -> bytes:
    """One request, broken or not; half of them go to the usual targets."""
    kind = rng.random()
    if kind < 0.1:
        return rng.randbytes(rng.randrange(300)) + rng.choice([b"", b"\r\n\r\n"])
    if kind < 0.13:
        return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(rng.randrange(100))
    headers = rng.choices(HEADERS, k=rng.randrange(6))
    if rng.random() < 0.7:
        headers = [b"Host: localhost", b"Authorization: Bearer k", *(h for h in headers if not h.startswith(b"Host"))]
    rng.shuffle(headers)
    method = rng.choice(METHODS) if rng.random() < 0.5 else rng.choice([b"GET", b"POST"])
    target = rng.choice(targets) if rng.random() < 0.5 else rng.choice(usual)
    lines = [b" ".join([method, target, rng.choice(VERSIONS)]), *headers]
    data = rng.choice([b"\r\n"] * 9 + [b"\n"]).join([*lines, b"", b""]) + rng.choice(BODIES)
    if kind < 0.35:
        changed = bytearray(data)
        for _ in range(rng.randrange(1, 5)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        data = bytes(changed)
    if kind > 0.9:
        data = data[: rng.randrange(len(data) + 1)]
    return data


def make_api_request(rng: random.Random) -> bytes:
    """One for the daemon: every other one is whole, and asks for something that it may or may not do."""
    if rng.random() < 0.5:
        return make_request(rng, TARGETS + API_TARGETS, API_TARGETS)
    body = rng.choice(JSON_BODIES)
    if rng.random() < 0.3:
        changed = bytearray(body)
        changed[rng.randrange(len(changed))] = rng.randrange(256)
        body = bytes(changed)
    method, target = rng.choice([b"POST", b"PUT", b"DELETE", b"GET"]), rng.choice(API_TARGETS)
    return b"%b %b HTTP/1.1\r\nHost: localhost\r\n" % (method, target) + with_length(body)


def make_app() -> QuartTrio:
    app = QuartTrio(__name__)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.route("/echo", methods=["POST", "PUT", "PATCH"])
    async def echo() -> Any:
        return await request.get_data()

    @app.get("/stream")
    async def stream() -> Response:
        async def lines() -> Any:
            for _ in range(3):
                yield b"{}\n"
                await trio.sleep(0.01)

        response = Response(lines(), content_type="application/x-ndjson")
        response.timeout = None
        return response

    return app


@dataclass(slots=True)
class Patience:
    """How long clients wait for more of an answer: for many things that they send none comes."""

    seconds: float = PATIENCE_S


async def attack(
    port: int, requests: list[bytes], rng: random.Random, answers: list[bytes], patience: Patience
) -> None:
    while requests:
        data = requests.pop()
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            answer = b""
            try:
                cut = rng.randrange(len(data) + 1)
                for part in (data[:cut], data[cut:]):
                    await stream.send_all(part)
                if rng.random() < 0.2:
                    await stream.send_eof()
                with trio.move_on_after(patience.seconds):
                    while part := await stream.receive_some(65_536):
                        answer += part
            except trio.BrokenResourceError:
                pass
            if rng.random() < 0.2:
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if answer:
            answers.append(answer)


async def ask_health(port: int) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
        answer = b""
        with trio.fail_after(ANSWER_S):
            while part := await stream.receive_some(65_536):
                answer += part
        assert b'"status":"ok"' in answer


async def bombard(port: int, requests: list[bytes], rng: random.Random) -> list[bytes]:
    """What is answered to all these requests, while another client asks as one should."""
    answers: list[bytes] = []
    patience = Patience()

    async def keep_asking() -> None:
        while requests:
            began = trio.current_time()
            await ask_health(port)
            patience.seconds = max(patience.seconds, 4 * (trio.current_time() - began))
            await trio.sleep(0.05)

    async with trio.open_nursery() as clients:
        clients.start_soon(keep_asking)
        for _ in range(CLIENTS):
            clients.start_soon(attack, port, requests, rng, answers, patience)
    await ask_health(port)
    return answers


def check_answers(answers: list[bytes]) -> set[bytes]:
    """The statuses that came; none is one of a failure."""
    for answer in answers:
        assert b"HTTP/1.1 5" not in answer, answer[:500]
        assert not answer.startswith(b"HTTP/1.1 101")
    return {answer[9:12] for answer in answers if answer.startswith(b"HTTP/1.1 ")}


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_bytes_hurt_the_server(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(seed)
    usual = [b"/health", b"/echo", b"/stream"]
    requests = [make_request(rng, TARGETS, usual) for _ in range(REQUESTS)]
    stop = trio.Event()
    async with open_listeners([TcpAddress("127.0.0.1", 0)]) as listeners, trio.open_nursery() as nursery:
        port = listeners[0].socket.getsockname()[1]
        guard_settings = GuardSettings(allowed_hosts=host_names([("127.0.0.1", port)]), api_key=Secret("k"))
        guard = Guard(make_app(), settings=guard_settings)
        settings = ServeSettings(max_body_bytes=10_000, head_timeout_s=1, body_timeout_s=1, grace_s=1)
        await nursery.start(partial(serve, guard, listeners, settings=settings, stop=stop))
        answers = await bombard(port, requests, rng)
        stop.set()
    assert len(answers) > REQUESTS / 2
    assert {b"200", b"400", b"401", b"403", b"404", b"413", b"415"} <= check_answers(answers)
    assert [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")] == []


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    process = DaemonProcess(tmp_path_factory.mktemp("daemon")).start()
    yield process
    process.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", SEEDS)
async def test_no_bytes_hurt_a_daemon(seed: int, daemon: DaemonProcess) -> None:
    rng = random.Random(seed)
    requests = [make_api_request(rng) for _ in range(REQUESTS)]
    # Few of those come as far as to be refused for their type, and some of these clients leave before the answer.
    requests += [
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n"
    ] * 20
    rng.shuffle(requests)
    answers = await bombard(int(daemon.url.rpartition(":")[2]), requests, rng)
    assert daemon.process is not None
    assert daemon.process.poll() is None, "the daemon has ended"
    assert len(answers) > REQUESTS / 2
    assert {b"200", b"400", b"403", b"404", b"405", b"415"} <= check_answers(answers)
    log = daemon.log.read_text(encoding="utf-8")
    assert "Traceback" not in log
    assert "internal error" not in log
