"""The written forms of addresses."""

from __future__ import annotations

import pytest

from pipeline_engine.providers.addresses import (
    is_loopback,
    join_path,
    normalise_base_uri,
    ollama_base_uri,
    origin_of,
    with_port,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        (":9000", "http://127.0.0.1:9000"),
        ("localhost:11434", "http://localhost:11434"),
        ("gpu.example", "http://gpu.example:11434"),
        ("gpu.example:80", "http://gpu.example:80"),
        ("http://gpu.example", "http://gpu.example:80"),
        ("https://gpu.example", "https://gpu.example:443"),
        ("https://gpu.example/ollama/", "https://gpu.example:443/ollama"),
        ("[::]:11434", "http://[::1]:11434"),
        ("[::1]", "http://[::1]:11434"),
        ("::1", "http://[::1]:11434"),
        ('  "http://127.0.0.1:11434"  ', "http://127.0.0.1:11434"),
        ("http://127.0.0.1:11434/", "http://127.0.0.1:11434"),
    ],
)
def test_ollama_host_in_all_its_forms(text: str, address: str) -> None:
    assert ollama_base_uri(text) == address


@pytest.mark.parametrize("text", ["0.0.0.0:99999", "ftp://gpu.example", "gpu example", "host:port"])
def test_what_ollama_host_cannot_be_is_refused_with_the_value(text: str) -> None:
    with pytest.raises(ValueError, match="OLLAMA_HOST") as caught:
        ollama_base_uri(text)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:8080/v1/", "http://localhost:8080/v1"),
        ("127.0.0.1", "http://127.0.0.1"),
        (" https://API.example/v1 ", "https://API.example/v1"),
        ("HTTPS://api.example", "https://api.example"),
        ("https://x.example/openai?api-version=2024-10-21", "https://x.example/openai?api-version=2024-10-21"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("[::ffff:127.0.0.1]", "http://[::ffff:127.0.0.1]"),
        ("models.example.:80", "http://models.example.:80"),
        (f"{'a' * 63}.example", f"http://{'a' * 63}.example"),
    ],
)
def test_a_missing_scheme_means_http(text: str, address: str) -> None:
    assert normalise_base_uri(text) == address


@pytest.mark.parametrize("text", ["ftp://x", "http://", "", "http://a b", "http://h:99999", "file:///etc/passwd"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="base_uri"):
        normalise_base_uri(text)


@pytest.mark.parametrize("host", ["localhost..", ".localhost", "my..host", ".", "a" * 64, f"{'a' * 64}.example"])
def test_a_name_that_the_system_cannot_look_up_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="a part of the host's name is empty or too long"):
        normalise_base_uri(f"http://{host}:11434/v1")


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="user name or password") as caught:
        normalise_base_uri("https://me:hunter2@api.example")
    assert "hunter2" not in str(caught.value)


def test_origins_compare_by_scheme_host_and_effective_port() -> None:
    assert origin_of("https://API.example/v1") == origin_of("https://api.example:443")
    assert origin_of("http://api.example") != origin_of("https://api.example")
    assert origin_of("http://localhost:1") != origin_of("http://127.0.0.1:1")


def test_a_path_goes_before_the_query_of_the_base() -> None:
    assert join_path("http://h/v1", "/models") == "http://h/v1/models"
    assert join_path("http://h/d/?v=1", "/models") == "http://h/d/models?v=1"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]", "0.0.0.0"]
)
def test_names_of_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["api.example", "10.0.0.1", "localhost.example", "128.0.0.1", ""])
def test_names_of_other_machines(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://127.0.0.1/v1", "http://127.0.0.1:4711/v1"),
        ("http://localhost:80/health?deep=1", "http://localhost:4711/health?deep=1"),
        ("http://[::1]:1", "http://[::1]:4711"),
    ],
)
def test_a_port_takes_the_place_of_the_one_before(address: str, expected: str) -> None:
    assert with_port(address, 4711) == expected
