"""The bytes of an answer, in whatever pieces they come."""

from __future__ import annotations

import gc
import weakref

import pytest

from pipeline_engine.providers.answer_parser import MAX_HEAD_SIZE, AnswerParser, InvalidAnswerError

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: u\r\n\r\n"
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde"


def feed(*pieces: bytes) -> AnswerParser:
    parser = AnswerParser()
    for piece in pieces:
        parser.feed(piece)
    return parser


@pytest.mark.parametrize("data", [CHUNKED, LENGTH])
def test_the_body_is_the_same_however_the_bytes_are_cut(data: bytes) -> None:
    for cut in range(len(data)):
        parser = feed(*([data[:cut], data[cut:]] if cut else [data[i : i + 1] for i in range(len(data))]))
        assert (parser.status, parser.take_body(), parser.is_complete) == (200, b"abcde", True)
        assert parser.leaves_connection_open


def test_trailers_are_no_headers() -> None:
    assert feed(CHUNKED).headers == [(b"Content-Type", b"text/plain"), (b"Transfer-Encoding", b"chunked")]


def test_what_is_taken_is_taken_once() -> None:
    parser = feed(LENGTH[:-2])
    assert (parser.take_body(), parser.has_body, parser.is_complete) == (b"abc", False, False)
    parser.feed(LENGTH[-2:])
    assert (parser.take_body(), parser.take_body()) == (b"de", b"")


def test_informational_answers_are_passed_over() -> None:
    parser = feed(b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
    assert not parser.has_head
    parser.feed(LENGTH)
    assert (parser.status, parser.headers) == (200, [(b"Content-Length", b"5")])


@pytest.mark.parametrize("after", [b"x", b"HTTP/1.1 500 No\r\nContent-Length: 1\r\n\r\nx", b"\0" * 100_000])
def test_what_follows_an_answer_is_not_of_it_and_ends_the_connection(after: bytes) -> None:
    for parser in (feed(LENGTH + after), feed(LENGTH, after)):
        assert (parser.status, parser.take_body(), parser.is_complete) == (200, b"abcde", True)
        assert not parser.leaves_connection_open


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_a_server_that_closes_is_believed(head: bytes) -> None:
    parser = feed(head)
    assert parser.is_complete
    assert not parser.leaves_connection_open


def test_an_answer_without_a_length_is_complete_at_its_end() -> None:
    parser = feed(b"HTTP/1.0 200 OK\r\n\r\nabc")
    assert not parser.is_complete
    assert parser.feed_end()
    assert (parser.take_body(), parser.leaves_connection_open) == (b"abc", False)


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 OK\r\nA:", CHUNKED[:-4], LENGTH[:-1]])
def test_an_answer_that_says_how_long_it_is_is_not_complete_before(data: bytes) -> None:
    assert not feed(data).feed_end()


@pytest.mark.parametrize(
    "data",
    [
        CHUNKED.replace(b"Encoding: chunked", b"Encoding: Chunked "),
        CHUNKED.replace(b"3\r\n", b"3  \r\n"),
        CHUNKED.replace(b"2;x=y\r\n", b"02\r\n"),
    ],
)
def test_what_servers_do_with_chunks_is_understood(data: bytes) -> None:
    parser = feed(data)
    assert (parser.take_body(), parser.is_complete, parser.leaves_connection_open) == (b"abcde", True, True)


def test_where_there_is_a_length_besides_chunks_the_chunks_count_and_the_connection_ends() -> None:
    parser = feed(CHUNKED.replace(b"Transfer", b"Content-Length: 3\r\nTransfer"))
    assert (parser.take_body(), parser.is_complete, parser.leaves_connection_open) == (b"abcde", True, False)


def test_lines_may_end_without_a_carriage_return() -> None:
    assert feed(LENGTH.replace(b"\r", b"")).take_body() == b"abcde"


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\0\0\0\x12\x04\0\0\0",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * MAX_HEAD_SIZE,
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (MAX_HEAD_SIZE // 6),
    ],
)
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidAnswerError):
        feed(data)


def test_a_body_may_be_longer_than_a_head() -> None:
    size = 4 * MAX_HEAD_SIZE
    parser = feed(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, b"x" * size)
    assert len(parser.take_body()) == size


def test_a_complete_answer_is_no_garbage_for_the_cycle_collector() -> None:
    gc.disable()
    try:
        parser = feed(LENGTH)
        gone = weakref.ref(parser)
        del parser
        assert gone() is None
    finally:
        gc.enable()
