"""Takes the bytes of an HTTP/1.1 answer apart. The grammar is llhttp's."""

from __future__ import annotations

import httptools

MAX_HEAD_SIZE = 100 * 1024  # bytes


class InvalidAnswerError(ValueError):
    """The bytes are no HTTP answer; says what is wrong with them."""


class AnswerParser:
    """One answer: its head, then its body as far as it has been fed.

    Informational answers (1xx) are passed over. What follows the answer makes the connection useless for another one.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.has_head = False
        self.is_complete = False
        self._body: list[bytes] = []
        self._head_size = 0
        self._keep_alive = False
        self._followed = False
        # It holds our methods: let go of when the answer is complete, lest each answer is garbage that only the cycle
        # collector finds.
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        # As RFC 9112 allows in 2.2, 7.1 and 6.3, and as servers do.
        self._parser.set_dangerous_leniencies(
            lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True, lenient_chunked_length=True
        )

    @property
    def leaves_connection_open(self) -> bool:
        """Whether the connection may carry another request: the answer is complete, and nothing followed it."""
        return self.is_complete and self._keep_alive and not self._followed

    @property
    def has_body(self) -> bool:
        """Whether there is something to take."""
        return bool(self._body)

    def take_body(self) -> bytes:
        """What has come of the body since the last time."""
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        return body

    def feed(self, data: bytes) -> None:
        """More bytes. Raises InvalidAnswerError."""
        if self._parser is None:
            self._followed = True
            return
        had_head = self.has_head
        if not had_head:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise InvalidAnswerError("it switches to another protocol") from None
        except httptools.HttpParserError as exc:
            if not self.is_complete:
                raise InvalidAnswerError(str(exc)) from exc
            self._followed = True
        if not had_head:
            self._check_head()
        if self.is_complete:
            self._parser = None

    def feed_end(self) -> bool:
        """No more bytes will come: whether the answer is complete, which one without a length is by its end."""
        names = {name.lower() for name, _ in self.headers}
        if self.has_head and not names & {b"content-length", b"transfer-encoding"}:
            self.is_complete = True
            self._parser = None
        return self.is_complete

    def _check_head(self) -> None:
        if not self.has_head and self._head_size > MAX_HEAD_SIZE:
            raise InvalidAnswerError(f"its head exceeds {MAX_HEAD_SIZE} bytes")
        for name, value in self.headers if self.has_head else ():
            if name.lower() == b"transfer-encoding" and value.strip().lower() != b"chunked":
                raise InvalidAnswerError(f"its transfer encoding is {value.decode('latin-1')}, not chunked")

    # called by the parser

    def on_message_begin(self) -> None:
        self._followed = self.is_complete

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.has_head:  # else it is a trailer
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.is_complete or self._parser is None:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self.headers = []
            return
        self.status = status
        self.has_head = True
        names = {name.lower() for name, _ in self.headers}
        # With both, the length is ignored, and the connection cannot be trusted any further.
        self._keep_alive = self._parser.should_keep_alive() and not names >= {b"content-length", b"transfer-encoding"}

    def on_body(self, data: bytes) -> None:
        if not self.is_complete:
            self._body.append(data)

    def on_message_complete(self) -> None:
        self.is_complete = self.has_head
