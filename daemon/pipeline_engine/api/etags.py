"""Whether a client already has what it asks for."""

from __future__ import annotations

from collections.abc import Mapping


def client_has(etag: str, headers: Mapping[str, str]) -> bool:
    """Whether If-None-Match names the tag; the names of the headers are in lower case."""
    tags = [tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(",")]
    return etag in tags or "*" in tags
