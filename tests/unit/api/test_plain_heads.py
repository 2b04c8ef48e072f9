"""Which answers are plain, and how their heads are written."""

from __future__ import annotations

import h11
import pytest

from pipeline_engine.api.serving.plain_heads import plain_head

JSON = (b"content-type", b"application/json")


def read(data: bytes) -> h11.Response:
    """The head as a client reads it."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "localhost")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    event = client.next_event()
    assert isinstance(event, h11.Response)
    return event


def test_a_body_of_known_length() -> None:
    head = plain_head(200, [JSON, (b"Content-Length", b"12")])
    assert head is not None
    assert head.length == 12
    response = read(head.data)
    assert response.status_code == 200
    assert list(response.headers) == [JSON, (b"content-length", b"12")]


def test_a_body_in_chunks() -> None:
    head = plain_head(404, [JSON])
    assert head is not None
    assert head.length is None
    response = read(head.data)
    assert response.status_code == 404
    assert list(response.headers) == [JSON, (b"transfer-encoding", b"chunked")]


@pytest.mark.parametrize("status", [100, 101, 204, 304])
def test_an_answer_without_a_body_is_not_plain(status: int) -> None:
    assert plain_head(status, [JSON]) is None


@pytest.mark.parametrize(
    "header",
    [
        (b"connection", b"close"),
        (b"Transfer-Encoding", b"gzip"),
        (b"upgrade", b"x"),
        (b"content-length", b"-1"),
        (b"content-length", b"1, 1"),
        (b"x", b"a\r\nset-cookie: b"),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b"a\0b"),
        (b"x", b" a"),
        (b"x", b"a\t"),
        (b"x: y\r\nz", b"a"),
        (b"x y", b"a"),
        (b"x:", b"a"),
        (b"", b"a"),
    ],
)
def test_what_changes_the_connection_or_is_no_header_is_not_plain(header: tuple[bytes, bytes]) -> None:
    assert plain_head(200, [JSON, header]) is None
    assert plain_head(200, [header, JSON]) is None


def test_two_lengths_are_not_plain() -> None:
    assert plain_head(200, [(b"content-length", b"1"), (b"content-length", b"1")]) is None
