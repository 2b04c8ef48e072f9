"""The type of an image, from its bytes."""

from __future__ import annotations


def sniff_mime(data: bytes) -> str | None:
    """`image/png`, `image/jpeg`, `image/webp` or `image/gif`; None for anything else, however it is labelled."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return None
