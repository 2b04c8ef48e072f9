"""Connections to real sockets: reuse, ends, cancellation, TLS, proxies."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from tests.provider_calls import open_client
from tests.scripted_server import Reply, open_server

from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.providers.transport import HttpClient, Network

OK = Reply.json({"ok": True})

# A certificate for localhost, signed by itself and made for these tests.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBZjCCAQ2gAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABNg874DY4sjMPRLN
+nZGJO86jCuCmVCJTxnnO07fs7EoLIJejk+E62H7ALzHOgeL9I6G4J5RW/cHsZK5
W6SvIIajTjBMMA8GA1UdEwEB/wQFMAMBAf8wGgYDVR0RBBMwEYIJbG9jYWxob3N0
hwR/AAABMB0GA1UdDgQWBBQMud7/kmTG3KnmFevSpvhpdibK8jAKBggqhkjOPQQD
AgNHADBEAiBt5LSn/pRNVfOVZNvcuKgav4uOzChMlYJyEswoouSuhgIgNxzsPYir
6Y4PE0BPaIyw4la94pD+uKOIJLFd0hMbsAo=
-----END CERTIFICATE-----
"""
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgzEWOQP1e0yfWBjYU
brqGh9jb8LGa3Lwc/zmTTmyYcSyhRANCAATYPO+A2OLIzD0Szfp2RiTvOowrgplQ
iU8Z5ztO37OxKCyCXo5PhOth+wC8xzoHi/SOhuCeUVv3B7GSuVukryCG
-----END PRIVATE KEY-----
"""


async def fetch(client: HttpClient, url: str, *, connect_timeout_s: float = 5.0, content: bytes = b"{}") -> bytes:
    body = b""
    async with client.send("POST", url, headers={}, content=content, connect_timeout_s=connect_timeout_s) as answer:
        while piece := await answer.receive():
            body += piece
    return body


async def test_a_connection_is_used_again() -> None:
    async with open_server(OK) as server, open_client() as client:
        for _ in range(5):
            assert await fetch(client, server.url) == b'{"ok": true}'
        assert server.connections == 1
        assert (client.direct.busy, client.direct.idle) == (0, 1)


async def test_connections_to_a_server_that_is_never_asked_again_are_closed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_server(OK) as old, open_server(OK) as server, open_client() as client:
        await fetch(client, old.url)
        await fetch(client, server.url)
        assert client.direct.idle == 2
        later = trio.current_time() + 1000
        monkeypatch.setattr("pipeline_engine.providers.connection.trio.current_time", lambda: later)
        await fetch(client, server.url)
        assert client.direct.idle == 1
        assert (old.connections, server.connections) == (1, 2)


async def test_a_request_whose_idle_connection_was_closed_is_sent_again() -> None:
    async with open_server(OK, Reply(end="drop"), OK) as server, open_client() as client:
        await fetch(client, server.url)
        assert await fetch(client, server.url) == b'{"ok": true}'
        assert len(server.requests) == 3
        assert [request.connection for request in server.requests] == [0, 0, 1]


async def test_a_new_connection_that_breaks_is_not_tried_again() -> None:
    async with open_server(Reply(end="drop")) as server, open_client() as client:
        with pytest.raises(ProviderError, match=f"the connection to {server.url} broke") as caught:
            await fetch(client, server.url)
        assert (caught.value.code, caught.value.retryable) == (ErrorCode.PROVIDER_UNREACHABLE, True)
        assert len(server.requests) == 1


async def test_an_answer_that_began_is_not_asked_for_again() -> None:
    cut = Reply(chunks=[b"part"], end="cut")
    async with open_server(OK, cut, OK) as server, open_client() as client:
        await fetch(client, server.url)
        with pytest.raises(ProviderError) as caught:
            await fetch(client, server.url)
        assert caught.value.code is ErrorCode.PROVIDER_UNREACHABLE
        assert len(server.requests) == 2
        assert (client.direct.busy, client.direct.idle) == (0, 0)


@pytest.mark.parametrize("end", ["reset", "cut"])
async def test_a_connection_that_breaks_in_the_answer_is_unreachable(end: str) -> None:
    async with open_server(Reply(chunks=[b"a", b"b"], end=end)) as server, open_client() as client:  # type: ignore[arg-type]
        with pytest.raises(ProviderError) as caught:
            await fetch(client, server.url)
        assert (caught.value.code, caught.value.retryable) == (ErrorCode.PROVIDER_UNREACHABLE, True)


async def test_a_body_that_ends_with_the_connection_is_whole() -> None:
    async with open_server(Reply(chunks=[b"a", b"b"], end="close")) as server, open_client() as client:
        assert await fetch(client, server.url) == b"ab"
        assert client.direct.idle == 0


async def test_what_one_read_brought_is_one_piece() -> None:
    reply = Reply(chunks=[b"a", b"b", b"c"], end="chunked", at_once=True)
    async with (
        open_server(reply) as server,
        open_client() as client,
        client.send("GET", server.url, headers={}, content=b"", connect_timeout_s=5) as answer,
    ):
        assert await answer.receive() == b"abc"
        assert await answer.receive() == b""


async def test_bytes_behind_an_answer_are_not_the_next_answer() -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        one = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
        await stream.send_all(one + b"hi" + one + b"no")
        await stream.receive_some()

    async with open_raw_server(answer) as port, open_client() as client:
        for _ in range(2):
            assert await fetch(client, f"http://127.0.0.1:{port}") == b"hi"


async def test_a_cancelled_request_closes_its_connection_at_once() -> None:
    async with open_server(Reply(chunks=[b"a"], end="stall")) as server, open_client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, client, server.url)
            await server.wait_for_requests(1)
            nursery.cancel_scope.cancel()
        with trio.fail_after(1):
            await server.requests[0].gone.wait()
        assert (client.direct.busy, client.direct.idle) == (0, 0)


async def test_three_hundred_cancelled_requests_leave_nothing_behind() -> None:
    async with open_server(Reply(chunks=[b"a"], end="stall")) as server, open_client() as client:
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(fetch, client, server.url)
                if number == 200:
                    await server.wait_for_requests(20)
            nursery.cancel_scope.cancel()
        with trio.fail_after(10):
            await server.wait_until_all_closed()
        assert (client.direct.busy, client.direct.idle) == (0, 0)
        server.replies = [OK]
        assert await fetch(client, server.url) == b'{"ok": true}'


async def test_leaving_an_answer_early_closes_its_connection() -> None:
    async with open_server(Reply(chunks=[b"a"], end="stall")) as server, open_client() as client:
        async with client.send("GET", server.url, headers={}, content=b"", connect_timeout_s=5) as answer:
            assert await answer.receive() == b"a"
        with trio.fail_after(1):
            await server.wait_until_all_closed()


async def test_nobody_listens() -> None:
    async with open_client() as client:
        with pytest.raises(ProviderError) as caught:
            await fetch(client, "http://127.0.0.1:9/v1")
    assert str(caught.value) == "cannot connect to http://127.0.0.1:9 (connection refused)"
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.PROVIDER_UNREACHABLE, True)


@pytest.mark.parametrize("host", ["localhost..", "a" * 64])
async def test_a_host_whose_name_cannot_be_looked_up(host: str) -> None:
    async with open_client() as client:
        with pytest.raises(ProviderError, match="the name of the host is not valid") as caught:
            await fetch(client, f"http://{host}:1")
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.PROVIDER_UNREACHABLE, False)


async def test_something_that_does_not_speak_http() -> None:
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 mail.example ESMTP\r\n")
        await stream.receive_some()
        await stream.send_all(b"500 unrecognized command\r\n\r\n")

    async with open_raw_server(greet) as port, open_client() as client:
        with pytest.raises(ProviderError, match="not valid HTTP") as caught:
            await fetch(client, f"http://127.0.0.1:{port}")
    assert caught.value.code is ErrorCode.PROVIDER_PROTOCOL


async def test_a_refusal_is_read_although_the_body_was_not_sent_whole() -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some(100)
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await stream.send_eof()
        await trio.sleep(0.1)  # long enough for the rest of the body to be refused

    async with open_raw_server(refuse) as port, open_client() as client:
        content = b"x" * 20_000_000
        async with client.send(
            "POST", f"http://127.0.0.1:{port}", headers={}, content=content, connect_timeout_s=5
        ) as answer:
            assert answer.status == 413


async def test_an_interim_answer_is_skipped() -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
        await stream.receive_some()

    async with open_raw_server(answer) as port, open_client() as client:
        assert await fetch(client, f"http://127.0.0.1:{port}") == b"hi"


@pytest.mark.parametrize("headers", [{"authorization": "Bearer sk\nx"}, {"x-key": "schlüssel"}, {"x-key": "sk\u2028"}])
async def test_a_header_that_cannot_be_sent_is_not_shown(headers: dict[str, str]) -> None:
    async with open_server(OK) as server, open_client() as client:
        with pytest.raises(ProviderError) as caught:
            async with client.send("GET", server.url, headers=headers, content=b"", connect_timeout_s=5):
                pass
    assert str(caught.value) == "a header of the request holds a character that HTTP does not allow"


@pytest.mark.parametrize("headers", [{"content-length": "3"}, {"transfer-encoding": "chunked"}])
async def test_a_header_cannot_say_where_a_request_ends(headers: dict[str, str]) -> None:
    async with open_server(OK) as server:
        network = Network(proxies={"http": server.url})
        client = HttpClient(network=network)
        for url in (server.url, "http://models.example/v1"):  # directly, and through a proxy
            with pytest.raises(ProviderError, match="take them out of the headers"):
                async with client.send("POST", url, headers=headers, content=b"{}", connect_timeout_s=5):
                    pass
        assert server.connections == 0
        client.close()
        await network.aclose()


async def test_loopback_goes_past_the_proxy_and_other_hosts_through_it() -> None:
    async with open_server(OK) as server, open_server(OK) as proxy:
        network = Network(proxies={"http": proxy.url, "all": "socks5h://127.0.0.1:9"})
        async with open_client(network) as client:
            assert await fetch(client, server.url) == b'{"ok": true}'
            assert await fetch(client, f"http://localhost:{server.port}") == b'{"ok": true}'
            assert proxy.requests == []
            assert await fetch(client, "http://models.example/v1") == b'{"ok": true}'
            assert [request.target for request in proxy.requests] == ["http://models.example/v1"]
        await network.aclose()


async def test_a_proxy_that_is_not_there_is_named_as_the_reason() -> None:
    network = Network(proxies={"all": "http://127.0.0.1:9"})
    async with open_client(network) as client:
        with pytest.raises(
            ProviderError, match=r"cannot connect to http://models\.example:80 through the proxy"
        ) as caught:
            await fetch(client, "http://models.example/v1")
    assert caught.value.code is ErrorCode.PROVIDER_UNREACHABLE
    await network.aclose()


async def test_a_proxy_whose_name_cannot_be_looked_up() -> None:
    network = Network(proxies={"all": "http://proxy..:9"})
    async with open_client(network) as client:
        with pytest.raises(ProviderError, match="the proxy that is set for this host cannot be used") as caught:
            await fetch(client, "http://models.example/v1")
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.PROVIDER_UNREACHABLE, False)
    await network.aclose()


class TrustingNetwork(Network):
    """Trusts the certificate of these tests and nothing else."""

    def tls_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=CERTIFICATE)


async def test_https(tmp_path: Path) -> None:
    async with open_tls_server(tmp_path) as port:
        async with open_client(TrustingNetwork(proxies={})) as client:
            assert await fetch(client, f"https://localhost:{port}") == b"hi"
            assert await fetch(client, f"https://127.0.0.1:{port}") == b"hi"
        async with open_client() as client:
            with pytest.raises(
                ProviderError, match=f"cannot connect to https://localhost:{port} .certificate: "
            ) as caught:
                await fetch(client, f"https://localhost:{port}")
    assert caught.value.code is ErrorCode.PROVIDER_UNREACHABLE


async def test_a_server_without_tls_at_an_https_address() -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")

    async with open_raw_server(refuse) as port, open_client() as client:
        with pytest.raises(ProviderError, match=f"cannot connect to https://127.0.0.1:{port} .TLS: "):
            await fetch(client, f"https://127.0.0.1:{port}")


async def test_a_handshake_that_never_ends_is_given_up_and_closed() -> None:
    gone = trio.Event()

    async def ignore(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass
        gone.set()

    async with open_raw_server(ignore) as port, open_client() as client:
        with pytest.raises(ProviderError, match=r"no connection within 0\.05 s"):
            await fetch(client, f"https://127.0.0.1:{port}", connect_timeout_s=0.05)
        with trio.fail_after(1):
            await gone.wait()


@asynccontextmanager
async def open_raw_server(handler: Callable[[trio.SocketStream], object]) -> AsyncIterator[int]:
    async def handle(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await handler(stream)  # type: ignore[misc]
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_tls_server(directory: Path) -> AsyncIterator[int]:
    """Answers one request on each connection, over TLS."""
    (directory / "pem").write_text(KEY + CERTIFICATE, encoding="ascii")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory / "pem")

    async def answer(tcp: trio.SocketStream) -> None:
        tls = trio.SSLStream(tcp, context, server_side=True, https_compatible=True)
        if await tls.receive_some():
            await tls.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
            await tls.receive_some()

    async with open_raw_server(answer) as port:
        yield port
