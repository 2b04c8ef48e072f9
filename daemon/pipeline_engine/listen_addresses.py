"""The addresses that the daemon listens on, as they are written in the configuration."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass

_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_FORMS = "write HOST:PORT, :PORT, http://HOST:PORT or unix:/path"

#: `sun_path` of a unix socket's address holds 108 bytes on Linux, a zero byte at its end among them.
MAX_SOCKET_PATH = 107


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host (an IPv6 address without its brackets) and a port; 0 lets the system choose one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it. A name other than localhost may mean anything."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    def __str__(self) -> str:
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The absolute path of a unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def parse_addresses(text: str) -> list[Address]:
    """The addresses of a text in which commas separate them. Raises ValueError with words that name the bad one."""
    addresses: list[Address] = []
    for part in text.split(","):
        address = _parse(part.strip())
        if address in addresses:
            raise ValueError(f"the address {part.strip()!r} stands here twice")
        addresses.append(address)
    return addresses


def _parse(text: str) -> Address:
    if not text:
        raise ValueError(f"an address is empty; {_FORMS}")
    scheme, separator, rest = text.partition(":")
    if separator and scheme.lower() == "unix":
        return _parse_unix(text, rest)
    if text.lower().startswith("https://"):
        raise ValueError(f"the address {text!r} asks for TLS, which a proxy in front of the daemon has to do")
    if text.lower().startswith("http://"):
        rest = text[len("http://") :].removesuffix("/")
    elif "://" in text:
        raise ValueError(f"the address {text!r} has an unknown scheme; {_FORMS}")
    else:
        rest = text
    host, separator, port = rest.rpartition(":")
    if not separator or rest.endswith("]"):
        raise ValueError(f"the address {text!r} has no port; {_FORMS}")
    return TcpAddress(_parse_host(host, text), _parse_port(port, text))


def _parse_unix(text: str, rest: str) -> UnixAddress:
    path = re.sub(r"^/{2,}", "/", rest)  # unix:///path means the same
    if not path.startswith("/") or path == "/":
        raise ValueError(f"the address {text!r} needs an absolute path: unix:/path")
    if "\0" in path:
        raise ValueError(f"the address {text!r} holds a zero byte")
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ValueError(f"the path of {text!r} is too long for a unix socket ({MAX_SOCKET_PATH} bytes at most)")
    return UnixAddress(path)


def _parse_host(host: str, text: str) -> str:
    if not host:
        return "127.0.0.1"
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise ValueError(f"the address {text!r} has no IPv6 address in its brackets") from None
    if ":" in host:
        raise ValueError(f"the address {text!r} is not clear: put an IPv6 address in brackets, as in [::1]:8085")
    if not _HOST_NAME.fullmatch(host):
        raise ValueError(f"the address {text!r} has no valid host name; {_FORMS}")
    return host


def _parse_port(port: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"the address {text!r} has no valid port (0 to 65535)")
    return int(port)
