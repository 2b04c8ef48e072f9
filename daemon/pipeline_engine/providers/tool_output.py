"""A tool's output: as text in pieces of whole lines, or as bytes; head and tail where there is too much of it."""

from __future__ import annotations

import codecs
from typing import Any

PIECE_BYTES = 64 * 1024
MAX_TAIL_BYTES = 64 * 1024


class Tail:
    """The last `limit` bytes of all that was appended, and in `total` how many there were."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self._kept = bytearray()

    @property
    def is_cut(self) -> bool:
        return self.total > self.limit

    @property
    def raw(self) -> bytes:
        """What is kept."""
        return bytes(self._kept[-self.limit :])

    @property
    def content(self) -> bytes:
        """What is kept; if that is not all, it begins with a whole UTF-8 character."""
        kept = self.raw
        if not self.is_cut:
            return kept
        start = 0
        while start < min(3, len(kept)) and kept[start] & 0xC0 == 0x80:
            start += 1
        return kept[start:]

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")

    def append(self, data: bytes) -> None:
        self.total += len(data)
        self._kept += data
        if len(self._kept) > 2 * self.limit:  # not at each call: that would move all that is kept for every line
            del self._kept[: -self.limit]


class ToolOutput:
    """Takes the bytes of an output as they come and gives its text in pieces.

    The text is decoded as UTF-8, with U+FFFD for what is none; NULs, escape sequences and carriage returns stay.
    Of all bytes `max_bytes` at most are kept: a head, given out as it comes, and a tail of a quarter (64 KiB at most),
    which is held back until the end because only then is it known what the last bytes are.
    """

    def __init__(self, max_bytes: int) -> None:
        tail_bytes = min(max_bytes // 4, MAX_TAIL_BYTES)
        self._head_left = max_bytes - tail_bytes
        self._tail = Tail(tail_bytes)
        self._unsent = bytearray()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._total = 0
        self._left_out = 0

    @property
    def has_unsent(self) -> bool:
        """Whether flush would give something."""
        return bool(self._unsent)

    def append(self, data: bytes) -> None:
        self._total += len(data)
        if len(data) <= self._head_left:
            self._unsent += data
            self._head_left -= len(data)
            return
        self._unsent += data[: self._head_left]
        self._tail.append(data[self._head_left :])
        self._head_left = 0

    def full_pieces(self) -> list[str]:
        """The pieces that need not wait for more: whole lines of up to 64 KiB, or 64 KiB of a longer line."""
        pieces = []
        while len(self._unsent) >= PIECE_BYTES:
            pieces.append(self._take(self._unsent.rfind(b"\n", 0, PIECE_BYTES) + 1 or PIECE_BYTES))
        return _without_empty(pieces)

    def flush(self) -> list[str]:
        """The whole lines that wait; without any, the partial line."""
        return _without_empty([self._take(self._unsent.rfind(b"\n") + 1 or len(self._unsent))])

    def finish(self) -> list[str]:
        """All that is left, with a line between head and tail that says how many bytes are missing there."""
        if not self._tail.is_cut:
            self._unsent += self._tail.content
            pieces = self.full_pieces()
            return _without_empty([*pieces, self._take(len(self._unsent)), self._decoder.decode(b"", final=True)])
        pieces = [*self.full_pieces(), self._take(len(self._unsent))]
        cut_character, _ = self._decoder.getstate()
        tail = self._tail.content
        self._left_out = len(cut_character) + self._tail.total - len(tail)
        marker = f"\n[… {self._left_out} bytes left out …]\n"
        return _without_empty([*pieces, marker, tail.decode("utf-8", "replace")])

    def warnings(self) -> list[dict[str, Any]]:
        """After finish: what a reader of the text must know about it."""
        if not self._left_out:
            return []
        kept = self._total - self._left_out
        message = f"the tool wrote {self._total} bytes; the first and the last ones are kept, {kept} in all"
        return [
            {"code": "output_truncated", "message": message, "total_bytes": self._total, "kept_bytes": kept},
        ]

    def _take(self, size: int) -> str:
        data = bytes(self._unsent[:size])
        del self._unsent[:size]
        return self._decoder.decode(data)


class BinaryOutput(ToolOutput):
    """Keeps the bytes of an output as they are, within the same bounds: there are no pieces of text, and no marker."""

    @property
    def has_unsent(self) -> bool:
        return False

    @property
    def content(self) -> bytes:
        """The head and the tail, which are all there is unless a warning says otherwise."""
        return bytes(self._unsent) + self._tail.raw

    def full_pieces(self) -> list[str]:
        return []

    def flush(self) -> list[str]:
        return []

    def finish(self) -> list[str]:
        self._left_out = self._total - len(self.content)
        return []


def _without_empty(pieces: list[str]) -> list[str]:
    return [piece for piece in pieces if piece]
