"""Decides which requests reach the app, on the raw bytes and before any framework sees them."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline_engine.api.serving.asgi import AsgiApp, Receive, Scope, Send
from pipeline_engine.api.serving.browsers import preflight_headers, sending_with, sharing_headers
from pipeline_engine.api.serving.refusals import Refusal
from pipeline_engine.decoding import Secret

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """Who may call.

    `allowed_hosts`: lower case, `host` or `host:port`, IPv6 in brackets (`host_names` makes them); the local address
    of the connection is allowed besides. `allowed_origins`: lower case, `scheme://host[:port]`. `open_paths` and what
    begins with one of `open_prefixes` need no key.
    """

    allowed_hosts: frozenset[bytes]
    allowed_origins: frozenset[bytes] = frozenset()
    api_key: Secret | None = None
    open_paths: frozenset[str] = frozenset({"/health", "/health/ready", "/ui"})
    open_prefixes: tuple[str, ...] = ("/ui/",)


def host_names(bound: Iterable[tuple[str, int]], *, extra: Iterable[str] = ()) -> frozenset[bytes]:
    """The values of `Host` that name one of the bound addresses (host, port), localhost, or a name of `extra`.

    Names stand with each bound port and without one; an `extra` that has a port stands for that port alone.
    """
    addresses = list(bound)
    names = set(LOOPBACK_NAMES)
    names.update(f"[{host}]" if ":" in host else host for host, _port in addresses)
    whole: set[str] = set()
    for name in extra:
        has_port = name.rpartition("]")[2].count(":") == 1
        (whole if has_port else names).add(name)
    whole.update(f"{name}:{port}" for name in names for _host, port in addresses)
    return frozenset(name.lower().encode() for name in names | whole)


class Guard:
    """An ASGI app round another: passes on what may come in and answers the rest itself."""

    def __init__(self, app: AsgiApp, *, settings: GuardSettings) -> None:
        self._app = app
        self._settings = settings
        key = settings.api_key
        self._key = None if key is None else key.reveal().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = _Headers(scope["headers"])
            origin = self._allowed_origin(headers)
            sharing = sharing_headers(origin) if self._settings.allowed_origins else []
            verdict = self.judge(scope, headers)
            if isinstance(verdict, Refusal):
                await _answer(sending_with(send, sharing), verdict.status, verdict.headers(), verdict.body())
            elif origin is not None and _is_preflight(scope, headers):
                # Before the key is asked for: a browser sends none along.
                asks = bool(headers.all(b"access-control-request-private-network"))
                await _answer(sending_with(send, sharing), 204, preflight_headers(asks_for_private_network=asks))
            else:
                await self._app(verdict, receive, sending_with(send, sharing))

    def judge(self, scope: Scope, headers: _Headers) -> Scope | Refusal:
        """The scope to call the app with (its target in origin form), or the answer that refuses the request."""
        hosts = headers.all(b"host")
        if len(hosts) != 1 or not self._is_our_host(hosts[0], scope):
            return _forbidden("the Host header names no address of this server (see http.allowed_hosts)")
        target = _split_target(scope["raw_path"])
        if target is None:
            return Refusal(400, "invalid_request", "the request target is neither a path nor an http URL")
        authority, raw_path = target
        if authority is not None:
            if not self._is_our_host(authority, scope):
                return _forbidden("the request target names no address of this server (see http.allowed_hosts)")
            # The framework gets what it would have got for the origin form: one form less that it could mistake.
            path = "/" + scope["path"].partition("://")[2].partition("/")[2]
            scope = {**scope, "raw_path": raw_path, "path": path}
        return (
            self._check_site(headers, hosts[0].lower())
            or self._check_key(scope, headers)
            or _check_content_type(scope["method"], headers)
            or scope
        )

    def _is_our_host(self, host: bytes, scope: Scope) -> bool:
        host = host.lower()
        return host in self._settings.allowed_hosts or host in _local_address(scope.get("server"))

    def _check_site(self, headers: _Headers, host: bytes) -> Refusal | None:
        """A browser says on whose behalf it calls: only our own pages and allowed origins may."""
        origins = headers.all(b"origin")
        sites = headers.all(b"sec-fetch-site")
        # For a browser every other origin is another site, or another port of this one: whom the settings name may call
        # all the same. What does not say its origin (an image, a link, a script) cannot be told from anybody else's.
        allowed = self._allowed_origin(headers) is not None
        if origins and not allowed and not (len(origins) == 1 and self._is_our_origin(origins[0].lower(), host)):
            return _forbidden("the Origin is not allowed (see http.allowed_origins)")
        if not allowed and any(site not in (b"same-origin", b"none") for site in sites):
            return _forbidden("a request from another site is not allowed")
        return None

    def _allowed_origin(self, headers: _Headers) -> bytes | None:
        """The origin of the page that calls, as it was sent, if http.allowed_origins names it."""
        origins = headers.all(b"origin")
        allowed = len(origins) == 1 and origins[0].lower() in self._settings.allowed_origins
        return origins[0] if allowed else None

    def _is_our_origin(self, origin: bytes, host: bytes) -> bool:
        scheme, _, authority = origin.partition(b"://")
        if scheme not in (b"http", b"https"):
            return False
        # A bare name is the page of whatever listens on port 80: ours only if this very request went there.
        return authority == host or (
            b":" in authority.rpartition(b"]")[2] and authority in self._settings.allowed_hosts
        )

    def _check_key(self, scope: Scope, headers: _Headers) -> Refusal | None:
        if self._key is None or _is_unix(scope) or self._is_open(scope["path"]):
            return None
        if self._allowed_origin(headers) is not None and _is_preflight(scope, headers):
            return None
        given = headers.all(b"authorization")
        if len(given) == 1:
            scheme, _, token = given[0].partition(b" ")
            if scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._key):
                return None
        return Refusal(
            401,
            "unauthorized",
            "this call needs the API key: Authorization: Bearer KEY",
            extra_headers=((b"www-authenticate", b"Bearer"),),
            close=False,
        )

    def _is_open(self, path: str) -> bool:
        if path in self._settings.open_paths:
            return True
        return path.startswith(self._settings.open_prefixes) and ".." not in path.split("/") and "\\" not in path


class _Headers:
    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._raw = [(name.lower(), value.strip()) for name, value in raw]

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self._raw if key == name]


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes = b"") -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _is_preflight(scope: Scope, headers: _Headers) -> bool:
    """Whether a browser asks what a page of another origin may send."""
    return bool(scope["method"] == "OPTIONS" and headers.all(b"access-control-request-method"))


def _forbidden(message: str) -> Refusal:
    return Refusal(403, "forbidden", message)


def _split_target(raw: bytes) -> tuple[bytes | None, bytes] | None:
    """Authority and path of a request target, without its query; None for the forms that no call of ours has."""
    if raw.startswith(b"/"):
        # Frameworks merge or redirect a double slash, and a browser reads `//host` as another site.
        return None if raw.startswith(b"//") else (None, raw)
    scheme, separator, rest = raw.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        return None
    authority, _, path = rest.partition(b"/")
    return None if path.startswith(b"/") else (authority, b"/" + path)


def _is_unix(scope: Scope) -> bool:
    server = scope.get("server")
    return server is not None and server[1] is None  # ASGI: [path, None]


def _local_address(server: tuple[str, int | None] | None) -> tuple[bytes, ...]:
    """The `Host` of a client that called the address on which its connection arrived (behind 0.0.0.0 it is any)."""
    if server is None or server[1] is None:
        return ()
    address = ipaddress.ip_address(server[0])
    host = f"[{address}]" if address.version == 6 else str(address)
    return (host.encode(), f"{host}:{server[1]}".encode())


def _check_content_type(method: str, headers: _Headers) -> Refusal | None:
    """A form of a foreign page can send three media types without asking; JSON is none of them."""
    if method not in BODY_METHODS:
        return None
    has_body = bool(headers.all(b"transfer-encoding")) or any(value != b"0" for value in headers.all(b"content-length"))
    media_types = [value.partition(b";")[0].strip().lower() for value in headers.all(b"content-type")]
    if has_body and media_types != [b"application/json"]:
        return Refusal(415, "unsupported_media_type", "the body must be JSON: Content-Type: application/json")
    return None
