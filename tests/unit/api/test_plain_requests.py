"""Which requests are plain, and that h11 reads the same in them."""

from __future__ import annotations

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_engine.api.serving.plain_requests import PlainRequest, plain_request

HEAD = b"Host: localhost:8085\r\nUser-Agent: x/1 (y; z)\r\n"
GET = b"GET /v1/jobs?limit=2 HTTP/1.1\r\n" + HEAD + b"\r\n"
POST = b"POST /v1/jobs HTTP/1.1\r\n" + HEAD + b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


def read(data: bytes) -> PlainRequest | None:
    return plain_request(data, max_head_bytes=1000, max_body_bytes=100)


def read_by_h11(data: bytes) -> PlainRequest:
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    request = server.next_event()
    assert isinstance(request, h11.Request)
    assert not {b"content-length", b"transfer-encoding"} <= {name for name, _ in request.headers}, "refused after h11"
    body = b""
    while isinstance(event := server.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    assert not server.trailing_data[0]
    assert server.their_state is h11.DONE, "the connection is to stay open"
    assert not server.they_are_waiting_for_100_continue
    return PlainRequest(request.method, request.target, list(request.headers), body)


@pytest.mark.parametrize(
    "data",
    [
        GET,
        POST,
        POST.replace(b"POST", b"PUT"),
        GET.replace(b"GET", b"DELETE"),
        GET.replace(b"\r\n\r\n", b"\r\nConnection: Keep-Alive\r\n\r\n"),
        GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 0\r\n\r\n"),
        POST.replace(b": ", b":"),
        POST.replace(b": ", b":   "),
    ],
)
def test_plain_requests_are_read_as_h11_reads_them(data: bytes) -> None:
    request = read(data)
    assert request is not None
    assert request == read_by_h11(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GET[:-1],
        POST[:-1],
        POST + b"x",
        GET + GET,
        GET.replace(b"GET", b"HEAD"),
        GET.replace(b"GET", b"get"),
        GET.replace(b"/v1", b"http://localhost/v1"),
        GET.replace(b"/v1", b"/v1\xff"),
        GET.replace(b"HTTP/1.1", b"HTTP/1.0"),
        GET.replace(b"HTTP/1.1", b"HTTP/2.0"),
        GET.replace(b"Host", b"X-Host"),
        GET.replace(b"\r\n\r\n", b"\r\nHost: localhost\r\n\r\n"),
        GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        GET.replace(b"\r\n\r\n", b"\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"),
        GET.replace(b"\r\n\r\n", b"\r\nUpgrade: websocket\r\n\r\n"),
        POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"),
        POST.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"),
        POST.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: identity\r\n\r\n"),
        POST.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\n"),
        POST.replace(b"Length: 2", b"Length: +2"),
        POST.replace(b"Length: 2", b"Length: 2, 2"),
        POST.replace(b"Length: 2", b"Length: " + b"0" * 30 + b"2"),
        POST.replace(b"Length: 2", b"Length: " + b"0" * 900 + b"2"),
        GET.replace(b"\r\n\r\n", b"\r\n folded\r\n\r\n"),
        GET.replace(b"\r\n\r\n", b"\r\nX : y\r\n\r\n"),
        GET.replace(b"\r\n\r\n", b"\r\nX: a\0b\r\n\r\n"),
        GET.replace(b"\r\n\r\n", b"\r\nX: a\rb\r\n\r\n"),
        GET.replace(b"\r\n", b"\n"),
        GET.replace(b"\r\n\r\n", b"\r\nX: " + b"y" * 1000 + b"\r\n\r\n"),
        POST.replace(b"Length: 2", b"Length: 101").replace(b"{}", b"x" * 101),
    ],
)
def test_all_others_are_left_to_h11(data: bytes) -> None:
    assert read(data) is None


_PARTS = st.sampled_from(
    [
        b"GET ",
        b"POST ",
        b"/",
        b"/v1",
        b" HTTP/1.1",
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b"Host: a",
        b"Host:",
        b": ",
        b" ",
        b"Content-Length: 2",
        b"content-length: 0",
        b"Connection: ",
        b"keep-alive",
        b"close",
        b"Transfer-Encoding: chunked",
        b"Expect: 100-continue",
        b"X: y",
        b"X:\ty",
        b"\x00",
        b"\xff",
        b"{}",
        b"2\r\n{}\r\n0\r\n\r\n",
        b"?q=%20",
        b",",
    ]
)
_VALID = st.builds(
    lambda headers, tail: b"POST /v1 HTTP/1.1\r\nHost: a\r\n" + b"".join(headers) + b"\r\n" + tail,
    st.lists(st.builds(lambda parts: b"".join(parts) + b"\r\n", st.lists(_PARTS, min_size=1, max_size=3)), max_size=4),
    st.sampled_from([b"", b"{}", b"{}x"]),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # how fast texts are made is not what is tested
@given(st.one_of(st.lists(_PARTS, max_size=12).map(b"".join), _VALID))
def test_nothing_is_plain_that_h11_reads_otherwise(data: bytes) -> None:
    request = read(data)
    if request is not None:
        assert request == read_by_h11(data)
