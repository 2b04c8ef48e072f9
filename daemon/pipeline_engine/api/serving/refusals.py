"""Answers that are given before, or instead of, the app's: JSON errors as the whole API has them."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pipeline_engine.api.serving.browsers import PROTECTION


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error answer; `close` says that the connection is of no use after it."""

    status: int
    code: str
    message: str
    extra_headers: tuple[tuple[bytes, bytes], ...] = ()
    close: bool = True

    def body(self) -> bytes:
        return json.dumps({"error": {"code": self.code, "message": self.message, "details": {}}}).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(self.body())),
            *PROTECTION.items(),
            *self.extra_headers,
        ]
        if self.close:
            headers.append((b"connection", b"close"))
        return headers
