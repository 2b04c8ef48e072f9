"""How many tokens a second one provider stream carries: `python -m benchmarks.provider_stream [TOKENS]`.

A server in a process of its own sends chat events as fast as it can, first each in a write of its own, then many in one
write; the registry's stream is read as a step reads it.
"""

from __future__ import annotations

import json
import multiprocessing
import socket
import sys
import time

import trio

from pipeline_engine.models import ProviderKind, ProviderProfile
from pipeline_engine.providers.base import Chunk, Message, ProviderCall
from pipeline_engine.providers.local_tool import LocalToolProvider
from pipeline_engine.providers.registry import open_registry

TOKENS = 50_000
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _chunk(value: object) -> bytes:
    data = b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def serve(listener: socket.socket, tokens: int) -> None:
    """Answer one request after another; the prompt is the number of tokens that go into one write."""
    token = {"id": "x", "object": "chat.completion.chunk", "model": "m", "choices": [{"index": 0, "delta": {}}]}
    token["choices"][0]["delta"] = {"content": " token"}  # type: ignore[index]
    end = _chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}) + _chunk(b"[DONE]") + b"0\r\n\r\n"
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            while request := connection.recv(65536):
                in_one = int(json.loads(request.partition(b"\r\n\r\n")[2])["messages"][0]["content"])
                connection.sendall(HEAD)
                piece = _chunk(token) * in_one
                for _ in range(tokens // in_one):
                    connection.sendall(piece)
                connection.sendall(end)


async def measure(port: int) -> None:
    profile = ProviderProfile(id="p", kind=ProviderKind.OPENAI, base_uri=f"http://127.0.0.1:{port}/v1")
    async with open_registry([profile], local_tool=LocalToolProvider(environment={})) as registry:
        for in_one in (1, 1, 20):  # the first one warms up
            call = ProviderCall(target=registry.resolve("p"), messages=[Message("user", str(in_one))])
            count = batches_seen = 0
            began, cpu = time.perf_counter(), time.process_time()
            async with registry.stream(call, job_id="benchmark") as batches:
                async for batch in batches:
                    batches_seen += 1
                    count += sum(isinstance(part, Chunk) for part in batch)
            wall, cpu = time.perf_counter() - began, time.process_time() - cpu
            print(
                f"{in_one:3} a write: {count / wall:9,.0f} tokens/s, {cpu / count * 1e6:5.1f} microseconds of CPU each,"
                f" {count / batches_seen:6.1f} in a batch"
            )


def main() -> None:
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else TOKENS
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = multiprocessing.Process(target=serve, args=(listener, tokens), daemon=True)
        server.start()
        trio.run(measure, listener.getsockname()[1])
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
