"""Where the daemon is and how it is reached: its address, the key, a proxy if one stands between."""

from __future__ import annotations

import ipaddress
import os
import ssl
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

# Both are documented by their use in urllib alone; the types of this one are missing.
import httpx

from ._errors import InvalidRequest

DEFAULT_URL = "http://127.0.0.1:8085"
CONNECT_TIMEOUT = 5.0  # seconds
#: A follower that hears nothing for so long has lost its connection: the daemon sends a heartbeat every 15 s.
SILENCE_TIMEOUT = 60.0  # seconds

# As many as there are followers: they hold their connections, and a limit would make the next call wait for them.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A daemon. `base_url` has no slash at its end; with `uds` it names a host only for the HTTP header."""

    base_url: str
    uds: str | None
    headers: Mapping[str, str]
    proxy: str | None

    def __str__(self) -> str:
        return f"unix:{self.uds}" if self.uds is not None else self.base_url


def find_target(
    base_url: str | None, uds: str | os.PathLike[str] | None, api_key: str | None, environ: Mapping[str, str]
) -> Target:
    """The daemon that the arguments name, or else the environment.

    Without `base_url` and `uds` it is that of PIPELINE_ENGINE_URL, with the key of PIPELINE_ENGINE_API_KEY or in the
    file of PIPELINE_ENGINE_API_KEY_FILE; the environment's key goes to no other address. Raises InvalidRequest for
    what is no address.
    """
    if base_url is not None and uds is not None:
        raise InvalidRequest("give either base_url or uds, not both")
    url = base_url or ""
    if base_url is None and uds is None:
        url = environ.get("PIPELINE_ENGINE_URL") or DEFAULT_URL
        api_key = api_key or _key_of(environ)
    if url.strip().startswith("unix:"):
        uds = "/" + url.strip().removeprefix("unix:").lstrip("/")
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    if uds is not None:
        return Target(base_url="http://localhost", uds=os.fspath(uds), headers=headers, proxy=None)
    url = _whole_url(url)
    return Target(base_url=url, uds=None, headers=headers, proxy=_proxy_for(url))


def _key_of(environ: Mapping[str, str]) -> str | None:
    if key := environ.get("PIPELINE_ENGINE_API_KEY"):
        return key
    if file := environ.get("PIPELINE_ENGINE_API_KEY_FILE"):
        try:
            return Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise InvalidRequest(f"PIPELINE_ENGINE_API_KEY_FILE: {file} cannot be read: {exc}") from exc
    return None


def _whole_url(text: str) -> str:
    url = text.strip()
    url = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or any(character.isspace() for character in url):
        raise InvalidRequest(f"{text!r} is not the address of a daemon; it looks like {DEFAULT_URL} or unix:/path")
    return url.rstrip("/")


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names for the address. This machine is always reached directly."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host):
        return None
    proxies = urllib.request.getproxies_environment()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or _is_exempt(parts.netloc.rpartition("@")[2], proxies):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_exempt(host: str, proxies: Mapping[str, str]) -> bool:
    """Whether NO_PROXY names the host."""
    return bool(urllib.request.proxy_bypass_environment(host, proxies))  # type: ignore[attr-defined] # typeshed lacks it


def is_loopback(host: str) -> bool:
    """Whether the host is this machine."""
    name = host.strip("[]").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


class _NoTransport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Stands in for a proxy that cannot be used: making a client never fails because of the environment."""

    def __init__(self, message: str) -> None:
        self._message = message

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        raise httpx.UnsupportedProtocol(self._message)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise httpx.UnsupportedProtocol(self._message)


def open_transport(target: Target) -> httpx.HTTPTransport | _NoTransport:
    """The connections of a sync client to the daemon."""
    try:
        proxy = _proxy_of(target)
        return httpx.HTTPTransport(verify=_tls(target), limits=_LIMITS, uds=target.uds, proxy=proxy)
    except (ValueError, ImportError) as exc:
        return _NoTransport(_about_proxy(target, exc))


def open_async_transport(target: Target) -> httpx.AsyncHTTPTransport | _NoTransport:
    """The connections of an async client to the daemon."""
    try:
        proxy = _proxy_of(target)
        return httpx.AsyncHTTPTransport(verify=_tls(target), limits=_LIMITS, uds=target.uds, proxy=proxy)
    except (ValueError, ImportError) as exc:
        return _NoTransport(_about_proxy(target, exc))


def _proxy_of(target: Target) -> httpx.Proxy | None:
    return httpx.Proxy(target.proxy) if target.proxy is not None else None


def _tls(target: Target) -> ssl.SSLContext | bool:
    # Reading the machine's certificates takes 20 ms, which no call to this machine needs.
    uses_tls = target.base_url.startswith("https:") or (target.proxy or "").startswith("https:")
    return True if uses_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _about_proxy(target: Target, error: Exception) -> str:
    scheme = (target.proxy or "").partition("://")[0]
    return f"the environment's {scheme} proxy cannot be used ({error}); NO_PROXY can name the daemon's host"
