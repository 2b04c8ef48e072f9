from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from pipeline_engine_sdk import ConnectionFailed, InvalidRequest, PipelineEngineClient
from pipeline_engine_sdk._settings import find_target

REMOTE = "https://api.example"
PROXIES: list[dict[str, str]] = [
    {"HTTP_PROXY": "http://127.0.0.1:9"},
    {"http_proxy": "http://127.0.0.1:9"},
    {"ALL_PROXY": "socks5h://127.0.0.1:9"},
    {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "localhost"},
    {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.0/8"},
]


@pytest.mark.parametrize(
    ("given", "base_url", "uds"),
    [
        ("http://h:1/", "http://h:1", None),
        ("h:1", "http://h:1", None),
        ("http://h/prefix/", "http://h/prefix", None),
        ("unix:/run/e.sock", "http://localhost", "/run/e.sock"),
        ("unix:///run/e.sock", "http://localhost", "/run/e.sock"),
    ],
)
def test_an_address_is_made_whole(given: str, base_url: str, uds: str | None) -> None:
    for target in (find_target(given, None, None, {}), find_target(None, None, None, {"PIPELINE_ENGINE_URL": given})):
        assert (target.base_url, target.uds) == (base_url, uds)


def test_without_anything_it_is_the_usual_address() -> None:
    assert find_target(None, None, None, {}).base_url == "http://127.0.0.1:8085"


@pytest.mark.parametrize("given", ["ftp://h", "http://", "http://h:99999", "http://a b", ""])
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(InvalidRequest, match="not the address"):
        find_target(given, None, None, {})


def test_an_address_and_a_socket_are_one_too_many() -> None:
    with pytest.raises(InvalidRequest, match="not both"):
        find_target("http://h", "/s", None, {})


def test_the_key_of_the_environment_goes_to_the_daemon_of_the_environment_only(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n", encoding="utf-8")
    assert find_target(None, None, None, {"PIPELINE_ENGINE_API_KEY": "k"}).headers["Authorization"] == "Bearer k"
    by_file = find_target(None, None, None, {"PIPELINE_ENGINE_API_KEY_FILE": str(file)})
    assert by_file.headers["Authorization"] == "Bearer from-file"
    assert "Authorization" not in find_target("http://other", None, None, {"PIPELINE_ENGINE_API_KEY": "k"}).headers
    assert find_target("http://other", None, "mine", {}).headers["Authorization"] == "Bearer mine"


@pytest.mark.parametrize("proxies", PROXIES)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.1.2.3"])
def test_no_proxy_stands_before_this_machine(
    monkeypatch: pytest.MonkeyPatch, proxies: dict[str, str], host: str
) -> None:
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    assert find_target(f"http://{host}:8085", None, None, {}).proxy is None
    assert find_target(None, "/s", None, {}).proxy is None
    PipelineEngineClient(f"http://{host}:8085").close()


def test_a_remote_daemon_is_reached_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "127.0.0.1:9")
    assert find_target(REMOTE, None, None, {}).proxy == "http://127.0.0.1:9"
    monkeypatch.setenv("NO_PROXY", "other.example, .example")
    assert find_target(REMOTE, None, None, {}).proxy is None


@pytest.mark.parametrize("proxy", ["socks5h://127.0.0.1:9", "socks4://127.0.0.1:9", "bogus://x"])
def test_a_proxy_that_cannot_be_used_fails_the_call_and_not_the_client(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with PipelineEngineClient("http://api.example") as client, pytest.raises(ConnectionFailed, match="proxy"):
        client.health()


def test_the_transport_that_is_given_is_used() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert str(request.url) == "http://h/prefix/health"
        return httpx.Response(200, json={"status": "ok", "new_field": 1})

    with PipelineEngineClient("http://h/prefix", transport=httpx.MockTransport(answer)) as client:
        assert client.health().status == "ok"
