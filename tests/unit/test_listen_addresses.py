from __future__ import annotations

import pytest

from pipeline_engine.listen_addresses import TcpAddress, UnixAddress, parse_addresses


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("127.0.0.1:8085", [TcpAddress("127.0.0.1", 8085)]),
        (":8085", [TcpAddress("127.0.0.1", 8085)]),
        ("http://0.0.0.0:80", [TcpAddress("0.0.0.0", 80)]),
        ("HTTP://localhost:80/", [TcpAddress("localhost", 80)]),
        ("http://:9000", [TcpAddress("127.0.0.1", 9000)]),
        ("[::1]:8085", [TcpAddress("::1", 8085)]),
        ("http://[::]:0", [TcpAddress("::", 0)]),
        ("unix:/run/engine.sock", [UnixAddress("/run/engine.sock")]),
        ("unix:///run/engine.sock", [UnixAddress("/run/engine.sock")]),
        (" :1 , unix:/a:b ", [TcpAddress("127.0.0.1", 1), UnixAddress("/a:b")]),
    ],
)
def test_addresses_in_all_their_forms(text: str, addresses: list) -> None:
    assert parse_addresses(text) == addresses


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (":1,", "empty"),
        ("localhost", "has no port"),
        ("8085", "has no port"),
        ("[::1]", "has no port"),
        ("http://localhost", "has no port"),
        ("localhost:http", "no valid port"),
        (":65536", "no valid port"),
        (":-1", "no valid port"),
        (":\u0661", "no valid port"),
        ("::1:8085", "in brackets"),
        ("[nonsense]:1", "no IPv6 address"),
        ("a b:1", "no valid host name"),
        ("*:8085", "no valid host name"),
        ("http://host:1/path", "no valid port"),
        ("https://localhost:1", "TLS"),
        ("tcp://localhost:1", "unknown scheme"),
        ("unix:run/engine.sock", "absolute path"),
        ("unix:/" + "x" * 107, "too long"),
        (":1,127.0.0.1:1", "twice"),
    ],
)
def test_what_is_no_address_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse_addresses(text)
    assert text.rsplit(",", maxsplit=1)[-1] in str(caught.value)


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        (":1", True),
        ("localhost:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("192.0.2.1:1", False),
        ("my-machine:1", False),
        ("localhost.example.com:1", False),
    ],
)
def test_only_loopback_is_loopback(text: str, loopback: bool) -> None:
    (address,) = parse_addresses(text)
    assert isinstance(address, TcpAddress)
    assert address.is_loopback is loopback


@pytest.mark.parametrize("text", ["http://127.0.0.1:8085", "http://[::1]:8085", "unix:/run/engine.sock"])
def test_an_address_prints_as_it_can_be_written(text: str) -> None:
    (address,) = parse_addresses(text)
    assert str(address) == text
