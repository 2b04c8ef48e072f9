"""Raw bytes of every bad kind, at random: no answer is a server error, and the same server still serves.

FUZZ_REQUESTS says how many requests each seed makes; FUZZ_SEEDS names the seeds.
"""

from __future__ import annotations

import os
import random
import socket
import struct
from functools import partial
from typing import Any

import pytest
import trio
from quart import Response, request
from quart_trio import QuartTrio

from pipeline_engine.api.serving import Guard, GuardSettings, ServeSettings, host_names, open_listeners, serve
from pipeline_engine.decoding import Secret
from pipeline_engine.listen_addresses import TcpAddress

SEEDS = [int(seed) for seed in os.environ.get("FUZZ_SEEDS", "1,2,3").split(",")]
REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "400"))
CLIENTS = 40  # at a time
PATIENCE_S = 0.2  # a client waits so long for more of an answer

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


def make_request(rng: random.Random) -> bytes:
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
    target = rng.choice(TARGETS) if rng.random() < 0.5 else rng.choice([b"/health", b"/echo", b"/stream"])
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


async def attack(port: int, requests: list[bytes], rng: random.Random, answers: list[bytes]) -> None:
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
                with trio.move_on_after(PATIENCE_S):
                    while part := await stream.receive_some(65_536):
                        answer += part
            except trio.BrokenResourceError:
                pass
            if rng.random() < 0.2:
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if answer:
            answers.append(answer)


async def ask_health(port: int) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
        answer = b""
        with trio.fail_after(5):
            while part := await stream.receive_some(65_536):
                answer += part
        return answer


@pytest.mark.parametrize("seed", [int(x) for x in os.environ.get("SEEDS", "1,2,3").split(",")])
async def test_no_bytes_hurt_the_server(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(seed)
    requests = [make_request(rng) for _ in range(REQUESTS)]
    answers: list[bytes] = []
    stop = trio.Event()
    async with open_listeners([TcpAddress("127.0.0.1", 0)]) as listeners, trio.open_nursery() as nursery:
        port = listeners[0].socket.getsockname()[1]
        guard_settings = GuardSettings(allowed_hosts=host_names([("127.0.0.1", port)]), api_key=Secret("k"))
        guard = Guard(make_app(), settings=guard_settings)
        settings = ServeSettings(max_body_bytes=10_000, head_timeout_s=1, body_timeout_s=1, grace_s=1)
        await nursery.start(partial(serve, guard, listeners, settings=settings, stop=stop))
        async with trio.open_nursery() as clients:
            for _ in range(CLIENTS):
                clients.start_soon(attack, port, requests, rng, answers)
        assert b'{"status":"ok"}' in await ask_health(port)
        stop.set()
    statuses = {answer[9:12] for answer in answers if answer.startswith(b"HTTP/1.1 ")}
    assert len(answers) > REQUESTS / 2
    assert {b"200", b"400", b"401", b"403", b"404", b"413", b"415"} <= statuses
    for answer in answers:
        assert b"HTTP/1.1 5" not in answer, answer[:500]
        assert not answer.startswith(b"HTTP/1.1 101")
    assert [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")] == []
