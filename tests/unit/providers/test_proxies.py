"""Which hosts are reached through a proxy."""

from __future__ import annotations

import pytest

from pipeline_engine.providers.proxies import proxy_for

ALL = {"http": "http://proxy:1", "https": "http://proxy:2", "all": "socks5h://proxy:3"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_this_machine_is_reached_directly_whatever_is_set(host: str, scheme: str) -> None:
    assert proxy_for(scheme, host, 8080, ALL) is None


@pytest.mark.parametrize(
    ("scheme", "proxies", "proxy"),
    [
        ("http", ALL, "http://proxy:1"),
        ("https", ALL, "http://proxy:2"),
        ("https", {"all": "proxy:3"}, "http://proxy:3"),
        ("https", {"http": "http://proxy:1"}, None),
        ("https", {}, None),
        ("https", {"https": ""}, None),
    ],
)
def test_the_scheme_chooses_the_proxy(scheme: str, proxies: dict[str, str], proxy: str | None) -> None:
    assert proxy_for(scheme, "api.example", 443, proxies) == proxy


@pytest.mark.parametrize(
    ("no", "host", "direct"),
    [
        ("*", "api.example", True),
        ("api.example", "API.example.", True),
        ("example", "api.example", True),
        (".example", "api.example", True),
        ("*.example", "api.example", True),
        ("ample", "api.example", False),
        ("other.example, api.example", "api.example", True),
        ("api.example:443", "api.example", True),
        ("api.example:8443", "api.example", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.0.0.0/8", "api.example", False),
        ("fd00::/8", "fd00::1", True),
        ("", "api.example", False),
    ],
)
def test_no_proxy(no: str, host: str, direct: bool) -> None:
    assert (proxy_for("https", host, 443, {"https": "http://p", "no": no}) is None) is direct
