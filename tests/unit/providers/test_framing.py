"""Lines, events and JSON values from bytes."""

from __future__ import annotations

import pytest

from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.providers import framing
from pipeline_engine.providers.framing import (
    JsonLinesDecoder,
    JsonText,
    LineSplitter,
    SseDecoder,
    SseEvent,
    TextJoiner,
    clean_text,
    decode_first_json,
    decode_json,
)


def lines_of(*pieces: bytes) -> list[bytes]:
    splitter = LineSplitter()
    return [line for piece in pieces for line in splitter.feed(piece)] + [splitter.rest()]


def events_of(*lines: bytes) -> list[SseEvent]:
    decoder = SseDecoder()
    return decoder.feed(lines)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\r"])
def test_only_a_line_feed_ends_a_line(separator: str) -> None:
    text = f"a{separator}b".encode()
    assert lines_of(text + b"\n") == [text, b""]


def test_lines_may_be_cut_anywhere() -> None:
    data = "één\r\ntwo\n\nlast".encode()
    whole = ["één".encode(), b"two", b"", b"last"]
    assert lines_of(data) == whole
    assert lines_of(*(bytes([byte]) for byte in data)) == whole


def test_a_line_without_an_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "MAX_LINE_SIZE", 10)
    splitter = LineSplitter()
    splitter.feed(b"12345678\n12345")
    with pytest.raises(ProviderError) as caught:
        splitter.feed(b"678901")
    assert caught.value.code is ErrorCode.PROVIDER_PROTOCOL


def test_events_by_the_standard() -> None:
    assert events_of(
        b"\xef\xbb\xbfdata:no space", b"", b": comment", b":", b"", b"id: 7", b"retry: 30", b"",
        b"event: error", b"data: first", b"data:  second", b"data", b"unknown: x", b"", b"data: next", b"",
    ) == [SseEvent("message", b"no space"), SseEvent("error", b"first\n second\n"), SseEvent("message", b"next")]  # fmt: skip


def test_the_last_event_may_lack_its_blank_line() -> None:
    decoder = SseDecoder()
    assert decoder.feed([b"data: x"]) == []
    assert decoder.flush() == SseEvent("message", b"x")
    assert decoder.flush() is None


def test_an_event_without_an_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "MAX_LINE_SIZE", 10)
    decoder = SseDecoder()
    for _ in range(3):
        assert decoder.feed([b"data: 123", b"data: 45678", b""]) == [SseEvent("message", b"123\n45678")]
    with pytest.raises(ProviderError) as caught:
        decoder.feed([b"data: 123", b"data: 45678", b"data"])
    assert caught.value.code is ErrorCode.PROVIDER_PROTOCOL


def values_of(*lines: bytes) -> list[object]:
    decoder = JsonLinesDecoder()
    return [text.value for line in lines if (text := decoder.feed(line)) is not None] + [decoder.rest()]


@pytest.mark.parametrize(
    ("lines", "values"),
    [
        ([b'{"a":1}', b"", b" ", b'{"b":2}'], [{"a": 1}, {"b": 2}, b""]),
        ([b"{", b'"a": [', b"1]", b"", b"}", b"[2]"], [{"a": [1]}, [2], b""]),
        ([rb'{"a": "}}\"]"', rb',"b": "\\"', b"}"], [{"a": '}}"]', "b": "\\"}, b""]),
        ([b'{"a":"half }'], [b'{"a":"half }']),
        ([b'{"a":"}\\'], [b'{"a":"}\\']),
        ([b'{"a":"x', b'y"}'], [b'{"a":"x\ny"}']),
    ],
)
def test_a_value_may_be_spread_over_lines(lines: list[bytes], values: list[object]) -> None:
    assert values_of(*lines) == values


@pytest.mark.parametrize(
    "lines", [[b"<html>"], [b'"'], [b"}"], [b"{", b"}}"], [b"{", b"oops", b"}"], [b"[" * 100_000, b"]" * 100_000]]
)
def test_lines_that_can_be_no_value_are_a_value_error_at_once(lines: list[bytes]) -> None:
    decoder = JsonLinesDecoder()
    for line in lines[:-1]:
        assert decoder.feed(line) is None
    with pytest.raises(ValueError):  # noqa: PT011 - the words are the decoder's
        decoder.feed(lines[-1])
    assert decoder.feed(b"[1]") == JsonText([1], b"[1]")


def test_a_value_without_an_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "MAX_LINE_SIZE", 10)
    decoder = JsonLinesDecoder()
    for _ in range(5):
        assert decoder.feed(b"[") is None
    with pytest.raises(ProviderError) as caught:
        decoder.feed(b"[")
    assert caught.value.code is ErrorCode.PROVIDER_PROTOCOL


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a":[1,2.5,null]}', {"a": [1, 2.5, None]}),
        (b'\xef\xbb\xbf{"a":1}', {"a": 1}),
        (b"[NaN, Infinity, -Infinity, 1]", [None, None, None, 1]),
        (b'"bad \xff byte"', "bad \ufffd byte"),
        (b'"tab\there"', "tab\there"),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b"123456789012345678901234567890", 123456789012345678901234567890),
    ],
)
def test_json_is_read_leniently(data: bytes, value: object) -> None:
    assert decode_json(data) == value


@pytest.mark.parametrize("data", [b"", b"{", b"{'a':1}", b"[" * 100_000, b"{}x"])
def test_what_is_no_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the words are the decoder's
        decode_json(data)


def test_what_follows_a_document_is_ignored_where_asked() -> None:
    assert decode_first_json(b' {"a":1}\n\ndata: [DONE]\n\n') == {"a": 1}
    for data in (b"", b"{", b"[" * 100_000):
        with pytest.raises(ValueError):  # noqa: PT011 - the words are the decoder's
            decode_first_json(data)


def test_a_surrogate_pair_may_be_cut_between_two_pieces() -> None:
    joiner = TextJoiner()
    pieces = [
        joiner.feed(decode_json(data)) for data in (b'"ok \\ud83d"', b'"\\ude00 done "', b'"\\udc81"', b'"\\ud800"')
    ]
    assert [*pieces, joiner.flush()] == ["ok ", "\U0001f600 done ", "\ufffd", "", "\ufffd"]
    assert joiner.flush() == ""


def test_clean_text_can_always_be_encoded() -> None:
    assert clean_text("plain \U0001f600") == "plain \U0001f600"
    assert clean_text("\ud83d\ude00 \udc81 \ud83dx") == "\U0001f600 \ufffd \ufffdx"
