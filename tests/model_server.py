"""A model server for the pages of the documentation: it speaks the protocols of Ollama, of OpenAI, and of image servers.

What it says means nothing; where a JSON schema is asked for, the answer fits it.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ("A short ", "answer, ", "in three pieces.")
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@contextmanager
def open_model_server() -> Iterator[str]:
    """A server on this machine; gives its `HOST:PORT`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        names = {"/v1/models": {"data": [{"id": "my-model"}]}, "/api/tags": {"models": [{"name": "llama3"}]}}
        self._send("application/json", json.dumps(names[self.path]).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/api/chat":
            pieces = [{"message": {"content": piece}, "done": False} for piece in _pieces(body.get("format"))]
            lines = [*pieces, {"done": True, "done_reason": "stop", "prompt_eval_count": 9, "eval_count": 3}]
            self._send("application/x-ndjson", b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        elif self.path.endswith("/images/generations"):
            self._send(
                "application/json", json.dumps({"data": [{"b64_json": base64.b64encode(PNG).decode()}]}).encode()
            )
        else:
            wanted = body.get("response_format", {}).get("json_schema", {}).get("schema")
            events = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in _pieces(wanted)]
            events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
            self._send("text/event-stream", f"{text}data: [DONE]\n\n".encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that the base class has
        """Keep the output of the tests quiet."""

    def _send(self, content_type: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _pieces(schema: Any) -> tuple[str, ...]:
    return (json.dumps(_fitting(schema)),) if isinstance(schema, dict) else WORDS


def _fitting(schema: dict[str, Any]) -> Any:
    """A value that a simple schema allows."""
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") == "object":
        return {name: _fitting(part) for name, part in schema.get("properties", {}).items()}
    if schema.get("type") == "array":
        return [_fitting(schema.get("items", {}))]
    return 7 if schema.get("type") in ("integer", "number") else "words"
