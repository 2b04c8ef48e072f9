"""Which proxy, if any, stands between us and a host."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from pipeline_engine.providers.addresses import is_loopback


def proxy_for(scheme: str, host: str, port: int, proxies: Mapping[str, str]) -> str | None:
    """The proxy's address, or None for a direct connection.

    `proxies` has the keys `http`, `https`, `all` and `no`, with the values of the environment variables
    `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`. This machine is always reached directly.
    """
    if is_loopback(host):
        return None
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or any(_covers(entry.strip(), host, port) for entry in proxies.get("no", "").split(",")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _covers(entry: str, host: str, port: int) -> bool:
    """One entry of NO_PROXY: `*`, a name and all below it, an address, a network, each perhaps with a port."""
    if not entry:
        return False
    if entry == "*":
        return True
    name = host.strip("[]").lower().rstrip(".")
    network = _network(entry)
    if network is not None:
        try:
            return ipaddress.ip_address(name) in network
        except ValueError:
            return False
    entry, _, only_port = entry.lower().partition(":")
    if only_port and only_port != str(port):
        return False
    suffix = entry.removeprefix("*").removeprefix(".").rstrip(".")
    return name == suffix or name.endswith(f".{suffix}")


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return None
