"""Requests over pooled connections: the only module that knows httpx."""

from __future__ import annotations

import functools
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass

import httpx

from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.providers.connection import (
    FORBIDDEN_CHARACTER,
    AnswerHead,
    Connection,
    Origin,
    Request,
    open_connection,
    write_request,
)
from pipeline_engine.providers.proxies import proxy_for

MAX_IDLE_CONNECTIONS = 64  # for each origin; a burst's others are closed when it is over
_DEFAULT_PORTS = {"http": 80, "https": 443}

#: What is wrong with headers that say where a request ends: another one would begin in the middle of its body.
FRAMING_HEADER = (
    "content-length and transfer-encoding follow from the request; take them out of the headers of the profile or step"
)
_FRAMING = frozenset({"content-length", "transfer-encoding"})


class Network:
    """What all clients share: the TLS context, and the transports through proxies.

    `proxies` is as `proxy_for` takes it.
    """

    def __init__(self, *, proxies: Mapping[str, str]) -> None:
        self._proxies = proxies
        self._tls_context: ssl.SSLContext | None = None
        self._proxied: dict[str, httpx.AsyncHTTPTransport] = {}

    def tls_context(self) -> ssl.SSLContext:
        """The TLS context, made on first use: it costs some 30 ms."""
        if self._tls_context is None:
            self._tls_context = httpx.create_ssl_context()
            self._tls_context.set_alpn_protocols(["http/1.1"])
        return self._tls_context

    def proxied(self, origin: Origin) -> httpx.AsyncBaseTransport | None:
        """The transport through the proxy that stands before this origin; None if there is none."""
        if not self._proxies:
            return None
        proxy = proxy_for(origin.scheme, origin.host, origin.port, self._proxies)
        if proxy is None:
            return None
        if proxy not in self._proxied:
            self._proxied[proxy] = self._through(proxy)
        return self._proxied[proxy]

    def _through(self, proxy: str) -> httpx.AsyncHTTPTransport:
        # No limits: nothing may wait in httpx's pool.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=MAX_IDLE_CONNECTIONS)
        try:
            return httpx.AsyncHTTPTransport(proxy=proxy, verify=self.tls_context(), trust_env=False, limits=limits)
        except (ImportError, ValueError, httpx.InvalidURL) as exc:
            # The address of a proxy may hold a password, and so may what httpx says about it.
            message = f"the proxy that is set for this host cannot be used ({type(exc).__name__})"
            raise ProviderError(ErrorCode.PROVIDER_UNREACHABLE, message) from None

    async def aclose(self) -> None:
        for transport in self._proxied.values():
            await transport.aclose()


class DirectTransport:
    """Connections of ours: a last-in-first-out free list for each origin.

    Nothing waits here, so a cancelled request can leave nothing behind but a closed connection. (httpx's own pool
    loses slots to requests that are cancelled while they wait for one.)
    """

    def __init__(self, *, network: Network) -> None:
        self._network = network
        self._idle: dict[Origin, deque[Connection]] = {}
        self._busy: set[Connection] = set()

    @property
    def busy(self) -> int:
        """How many connections carry a request now."""
        return len(self._busy)

    @property
    def idle(self) -> int:
        return sum(len(connections) for connections in self._idle.values())

    def send(
        self, method: str, address: Address, *, headers: Mapping[str, str], content: bytes, connect_timeout_s: float
    ) -> AbstractAsyncContextManager[RawAnswer]:
        """A request that starts with the block; at its end the connection goes back to the free list, or is closed."""
        request = write_request(method, address.target, address.host, headers, content)
        return _Sending(self, address.origin, request, connect_timeout_s)

    async def exchange(
        self, origin: Origin, request: Request, connect_timeout_s: float
    ) -> tuple[Connection, AnswerHead]:
        """Send a request over an idle connection, or over a new one, and wait for the head of its answer."""
        reused = self._take_idle(origin)
        if reused is not None:
            try:
                return reused, await self._request(reused, request)
            except ProviderError as exc:
                # The server closed the idle connection while our request was on its way.
                if reused.answered or exc.code is not ErrorCode.PROVIDER_UNREACHABLE:
                    raise
        fresh = await open_connection(origin, tls_context=self._network.tls_context, timeout_s=connect_timeout_s)
        return fresh, await self._request(fresh, request)

    def close(self) -> None:
        """Close all connections, those that carry a request too."""
        connections = [*self._busy, *(one for idle in self._idle.values() for one in idle)]
        self._busy.clear()
        self._idle.clear()
        for connection in connections:
            connection.close()

    async def _request(self, connection: Connection, request: Request) -> AnswerHead:
        self._busy.add(connection)
        try:
            return await connection.request(request)
        except BaseException:
            self.release(connection)
            raise

    def _take_idle(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin, deque())
        while idle:
            connection = idle.pop()
            if connection.is_alive():
                return connection
            connection.close()
        return None

    def release(self, connection: Connection) -> None:
        """Keep the connection for the next request if its answer is complete, else close it at once."""
        if connection not in self._busy:
            return
        self._busy.remove(connection)
        if not connection.make_idle():
            connection.close()
            return
        idle = self._idle.setdefault(connection.origin, deque())
        idle.append(connection)
        if len(idle) > MAX_IDLE_CONNECTIONS:
            idle.popleft().close()
        self._close_expired()

    def _close_expired(self) -> None:
        # Of all origins: one that is never called again would keep its connections for ever.
        for origin in list(self._idle):
            idle = self._idle[origin]
            while idle and idle[0].is_expired():
                idle.popleft().close()
            if not idle:
                del self._idle[origin]


class _Sending:
    """One request and its answer, as a context manager.

    A class: the generator that `asynccontextmanager` wants costs several times as much, and there is one for each call.
    """

    __slots__ = ("_connect_timeout_s", "_connection", "_origin", "_request", "_transport")

    _connection: Connection

    def __init__(self, transport: DirectTransport, origin: Origin, request: Request, connect_timeout_s: float) -> None:
        self._transport = transport
        self._origin = origin
        self._request = request
        self._connect_timeout_s = connect_timeout_s

    async def __aenter__(self) -> RawAnswer:
        connection, head = await self._transport.exchange(self._origin, self._request, self._connect_timeout_s)
        self._connection = connection
        return RawAnswer(head.status, head.headers, connection.receive_body, connection.is_complete)

    async def __aexit__(self, *_: object) -> None:
        # No checkpoint: this runs while a cancelled request unwinds, and has nothing to wait for.
        self._transport.release(self._connection)


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An answer whose body has not been read yet; header names are in lower case.

    `receive` gives the next piece of the body, as it arrived; empty at its end. `is_complete` says whether it is known
    that nothing follows what was received.
    """

    status: int
    headers: Mapping[str, str]
    receive: Callable[[], Awaitable[bytes]]
    is_complete: Callable[[], bool]


class HttpClient:
    """Sends requests over connections of its own, follows no redirects and reads nothing from the environment.

    Whatever goes wrong on the way is a ProviderError that names the server's address.
    """

    def __init__(self, *, network: Network) -> None:
        self.direct = DirectTransport(network=network)
        self._network = network

    def send(
        self, method: str, url: str, *, headers: Mapping[str, str], content: bytes, connect_timeout_s: float
    ) -> AbstractAsyncContextManager[RawAnswer]:
        """A request that starts with the block; leaving early closes its connection.

        The names of the headers are in lower case. The only timeout is the one for connecting.
        """
        if not _FRAMING.isdisjoint(headers):
            raise ProviderError(ErrorCode.PROVIDER_ERROR, FRAMING_HEADER)
        try:
            address = _parsed(url)
        except httpx.InvalidURL as exc:
            raise _mapped(exc, url) from exc
        proxied = self._network.proxied(address.origin)
        try:
            if proxied is None:
                return self.direct.send(
                    method, address, headers=headers, content=content, connect_timeout_s=connect_timeout_s
                )
            extensions = {"timeout": httpx.Timeout(None, connect=connect_timeout_s).as_dict()}
            request = httpx.Request(method, address.url, headers=dict(headers), content=content, extensions=extensions)
        except UnicodeEncodeError:
            raise ProviderError(ErrorCode.PROVIDER_ERROR, FORBIDDEN_CHARACTER) from None
        return _send_through(proxied, request)

    def close(self) -> None:
        self.direct.close()


@asynccontextmanager
async def _send_through(transport: httpx.AsyncBaseTransport, request: httpx.Request) -> AsyncIterator[RawAnswer]:
    # The transport is called without httpx's client around it: that would wrap each piece of the body in three more
    # generators, and there is nothing else here for it to do.
    url = str(request.url)
    try:
        response = await transport.handle_async_request(request)
    except httpx.HTTPError as exc:
        raise _mapped(exc, url) from exc
    except UnicodeError as exc:  # a label that is empty or too long
        message = "the proxy that is set for this host cannot be used (the name of its host is not valid)"
        raise ProviderError(ErrorCode.PROVIDER_UNREACHABLE, message) from exc
    assert isinstance(response.stream, httpx.AsyncByteStream)
    pieces = aiter(response.stream)

    async def receive() -> bytes:
        try:
            return await anext(pieces, b"")
        except httpx.HTTPError as exc:
            raise _mapped(exc, url) from exc

    async with aclosing(response):
        yield RawAnswer(response.status_code, response.headers, receive, lambda: False)


@dataclass(frozen=True, slots=True)
class Address:
    """A URL, and what a request to it says."""

    url: httpx.URL
    origin: Origin
    host: str
    target: str


@functools.lru_cache(maxsize=256)  # a few addresses serve thousands of calls
def _parsed(text: str) -> Address:
    url = httpx.URL(text)
    return Address(url, _origin(url), url.netloc.decode("ascii"), url.raw_path.decode("ascii"))


def _mapped(exc: httpx.HTTPError | httpx.InvalidURL, url: str) -> ProviderError:
    if isinstance(exc, httpx.InvalidURL):
        return ProviderError(ErrorCode.PROVIDER_ERROR, f"the address of the request is not valid ({exc})")
    refused = isinstance(exc, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError)
    what = "cannot connect to" if refused else "lost the connection to"
    message = f"{what} {_origin(httpx.URL(url))} through the proxy ({str(exc) or type(exc).__name__})"
    return ProviderError(ErrorCode.PROVIDER_UNREACHABLE, message, retryable=True)


def _origin(url: httpx.URL) -> Origin:
    return Origin(url.scheme, url.raw_host.decode("ascii").strip("[]"), url.port or _DEFAULT_PORTS[url.scheme])
