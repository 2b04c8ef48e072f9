"""From the bytes of an answer to lines, server-sent events and JSON values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from pipeline_engine.errors import ErrorCode, ProviderError

MAX_LINE_SIZE = 32 * 1024 * 1024  # bytes
_BOM = b"\xef\xbb\xbf"
# A string of a JSON text, to its end or to that of the line.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)


class LineSplitter:
    """Cuts a stream of bytes at 0x0A and nowhere else: U+2028 and its like are legal inside JSON strings."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that end in `data`, without their ends. Raises ProviderError if one is far too long."""
        first, *rest = data.split(b"\n")
        self._pieces.append(first)
        self._size += len(first)
        if self._size > MAX_LINE_SIZE:
            raise _too_large("a line")
        if not rest:
            return []
        lines = [b"".join(self._pieces), *rest[:-1]]
        self._pieces, self._size = [rest[-1]], len(rest[-1])
        return [line.removesuffix(b"\r") for line in lines]

    def rest(self) -> bytes:
        """What came after the last line's end."""
        return b"".join(self._pieces).removesuffix(b"\r")


class SseEvent(msgspec.Struct, frozen=True, gc=False):
    event: str
    data: bytes


class SseDecoder:
    """Server-sent events, as the HTML standard describes them (section 9.2.6): comments and unknown fields are
    skipped, one space after the colon is optional, several data lines are joined.
    """

    def __init__(self) -> None:
        self._data: list[bytes] = []
        self._size = 0
        self._event = ""
        self._at_start = True

    def feed(self, lines: Iterable[bytes]) -> list[SseEvent]:
        """The events that these lines complete. Raises ProviderError if one is far too long."""
        events = []
        for line in lines:
            if self._at_start:
                line = line.removeprefix(_BOM)  # noqa: PLW2901 - what is cut off belongs to no line
                self._at_start = False
            if not line:
                if event := self.flush():
                    events.append(event)
                continue
            name, _, value = line.partition(b":")
            if name == b"data":
                if self._data:
                    self._check_size(value)
                self._data.append(value.removeprefix(b" "))
            elif name == b"event":
                self._event = value.removeprefix(b" ").decode(errors="replace")
        return events

    def flush(self) -> SseEvent | None:
        """The event that has been read so far: servers forget the blank line behind the last one."""
        if not self._data:
            self._event = ""
            return None
        data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        event = SseEvent(self._event or "message", data)
        self._data, self._event = [], ""
        return event

    def _check_size(self, value: bytes) -> None:
        # Here and not for each event: a single line is bounded already.
        self._size = (len(self._data[0]) if len(self._data) == 1 else self._size) + len(value) + 1
        if self._size > MAX_LINE_SIZE:
            raise _too_large("an event")


class JsonText(msgspec.Struct, frozen=True, gc=False):
    """A value, and how it was written."""

    value: Any
    raw: bytes


class JsonLinesDecoder:
    """JSON values from lines: one in each, or one that is spread over several."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._size = 0
        self._depth = 0

    def feed(self, line: bytes) -> JsonText | None:
        """The value that the line completes. Raises ValueError if it cannot be one, ProviderError if it is far too long.

        Each line is looked at once: whether it completes a value that began earlier is told by its brackets.
        """
        if not self._lines:
            if not line.strip():
                return None
            try:
                return JsonText(decode_json(line), line)
            except ValueError:
                pass
        self._lines.append(line)
        self._size += len(line) + 1
        if self._size > MAX_LINE_SIZE:
            raise _too_large("a value")
        bare = _STRING.sub(b"", line)
        self._depth += bare.count(b"{") + bare.count(b"[") - bare.count(b"}") - bare.count(b"]")
        if self._depth > 0:
            return None
        raw = self.rest()
        return JsonText(decode_json(raw), raw)

    def rest(self) -> bytes:
        """What has been read of a value that is not complete."""
        raw = b"\n".join(self._lines)
        self._lines, self._size, self._depth = [], 0, 0
        return raw


def _too_large(what: str) -> ProviderError:
    return ProviderError(ErrorCode.PROVIDER_PROTOCOL, f"{what} of the answer exceeds {MAX_LINE_SIZE} bytes")


def decode_json(data: bytes) -> Any:
    """The value of a JSON text; ValueError if it is none.

    Lenient where servers are careless: invalid UTF-8 becomes U+FFFD, NaN and Infinity become null, control
    characters in strings are kept. Strings may hold half a surrogate pair: pass them through `clean_text` or a
    TextJoiner.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return _LENIENT.decode(data.decode(errors="replace").removeprefix("\ufeff"))
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def decode_first_json(data: bytes) -> Any:
    """The value at the beginning of a text that may go on behind it; ValueError if there is none."""
    try:
        return decode_json(data)
    except ValueError:
        text = data.decode(errors="replace").removeprefix("\ufeff").lstrip()
    try:
        return _LENIENT.raw_decode(text)[0]
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def _no_number(_: str) -> None:
    return None


_LENIENT = json.JSONDecoder(parse_constant=_no_number, strict=False)


def clean_text(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates replaced by U+FFFD, so that it can be stored."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class TextJoiner:
    """Cleans a text that comes in pieces: half a surrogate pair at the end of one waits for the next."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> str:
        if not self._held and piece.isascii():
            return piece
        text = self._held + piece
        self._held = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return clean_text(text[: len(text) - len(self._held)])

    def flush(self) -> str:
        """What waits, at the end of the text."""
        held, self._held = self._held, ""
        return clean_text(held)
