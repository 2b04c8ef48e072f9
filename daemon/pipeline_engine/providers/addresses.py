"""The addresses of model servers: written forms made whole, and compared."""

from __future__ import annotations

import functools
import ipaddress
from urllib.parse import SplitResult, urlsplit

from pipeline_engine.redaction import HIDDEN

_DEFAULT_PORTS = {"http": 80, "https": 443}
_OLLAMA_PORT = 11434

# Each call asks the same things of the same few addresses.
_remembered = functools.lru_cache(maxsize=256)


@_remembered
def normalise_base_uri(text: str) -> str:
    """The address with a scheme (`http://` when none is written) and without a slash at its end.

    Raises ValueError, with the value in the message, for what cannot be the address of a model server.
    """
    value = text.strip()
    parts = _split(value if "://" in value else f"http://{value}", value)
    query = f"?{parts.query}" if parts.query else ""
    if f"={HIDDEN}" in query:
        raise ValueError(f"the query of base_uri holds {HIDDEN}, which stands for a secret; write it out")
    return f"{parts.scheme.lower()}://{parts.netloc}{parts.path.rstrip('/')}{query}"


def ollama_base_uri(text: str) -> str:
    """The address of the server that an `OLLAMA_HOST` names, a bind address in any of the forms that Ollama takes.

    Raises ValueError, with the value in the message, for what Ollama itself would refuse.
    """
    value = text.strip().strip("\"'").strip()
    scheme, separator, rest = value.partition("://")
    if not separator:
        scheme, rest = "http", value
    default_port = _DEFAULT_PORTS.get(scheme, _OLLAMA_PORT) if separator else _OLLAMA_PORT
    authority, _, path = rest.partition("/")
    if _is_ipv6(authority):
        authority = f"[{authority}]"
    if authority.startswith(":") or not authority:
        authority = f"127.0.0.1{authority}"
    parts = _split(f"{scheme}://{authority}/{path}", text, name="OLLAMA_HOST")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(parts.hostname or "", parts.hostname or "")  # noqa: S104 - compared, never bound
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}:{parts.port or default_port}{parts.path.rstrip('/')}"


@_remembered
def origin_of(base_uri: str) -> tuple[str, str, int]:
    """Scheme, host and port of an address; two addresses of one origin belong to the same server."""
    parts = urlsplit(base_uri)
    scheme = parts.scheme.lower()
    return scheme, (parts.hostname or "").lower(), parts.port or _DEFAULT_PORTS.get(scheme, 0)


def with_port(address: str, port: int) -> str:
    """The address with that port instead of its own."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    return parts._replace(netloc=f"[{host}]:{port}" if ":" in host else f"{host}:{port}").geturl()


def join_path(base_uri: str, path: str) -> str:
    """The address of a call: `path` behind that of the base, whose query stays (Azure's `api-version`)."""
    base, _, query = base_uri.partition("?")
    return f"{base.rstrip('/')}{path}{'?' if query else ''}{query}"


def without_query(address: str) -> str:
    """The address as messages may show it: a query may hold a secret."""
    return address.partition("?")[0]


@_remembered
def is_loopback(host: str) -> bool:
    """Whether the host is this machine, so that no proxy can stand between."""
    name = host.strip("[]").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _split(address: str, value: str, *, name: str = "base_uri") -> SplitResult:
    try:
        parts = urlsplit(address)
        port_is_valid = parts.port != 0
    except ValueError as exc:
        raise ValueError(f"{name} {value!r} is not an address: {exc}") from None
    if parts.scheme.lower() not in _DEFAULT_PORTS:
        raise ValueError(f"{name} {value!r} must begin with http:// or https://")
    if not parts.hostname or not port_is_valid or any(char.isspace() for char in address):
        raise ValueError(f"{name} {value!r} is not an address")
    if not _can_be_looked_up(parts.hostname):
        raise ValueError(f"{name} {value!r} is not an address: a part of the host's name is empty or too long")
    if "@" in parts.netloc:
        # The value is not shown: what stands before the @ is a password.
        raise ValueError(f"{name} must not hold a user name or password; use api_key or extra.headers")
    return parts


def _can_be_looked_up(host: str) -> bool:
    """Whether the labels of a host's name are such that the system takes it (RFC 1035, section 2.3.4)."""
    return ":" in host or all(0 < len(label) < 64 for label in host.removesuffix(".").split("."))


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False
