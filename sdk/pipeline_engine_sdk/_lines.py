"""Bytes into lines, split at the byte 0x0A alone."""

from __future__ import annotations


class LineSplitter:
    """Takes the pieces of a stream and gives its complete lines.

    Not httpx's `iter_lines`: that also splits at characters such as U+2028, which may stand inside a JSON text.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of the line that is not complete yet; joined once, however long it is

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that this piece completes, without their ends; empty ones are left out."""
        first, *rest = data.split(b"\n")
        self._pieces.append(first)
        if not rest:
            return []
        lines = [b"".join(self._pieces), *rest[:-1]]
        self._pieces = [rest[-1]]
        return [line for line in lines if line.strip()]
