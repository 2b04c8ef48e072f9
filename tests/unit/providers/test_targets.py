"""Override, profile, default: in this order."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline_engine.decoding import Secret
from pipeline_engine.errors import ProviderError
from pipeline_engine.models import ProviderExtra, ProviderKind, ProviderOverride, ProviderProfile
from pipeline_engine.providers.targets import BUILT_IN_PROFILES, resolve


def profile(**fields: Any) -> ProviderProfile:
    defaults: dict[str, Any] = {"id": "p", "kind": ProviderKind.OPENAI, "base_uri": "http://models.example/v1"}
    return ProviderProfile(**{**defaults, **fields})


def test_the_override_wins_over_the_profile_which_wins_over_the_default() -> None:
    given = profile(default_model="mine", extra=ProviderExtra(idle_timeout_s=5, stream=False, system_prompt="S"))
    target = resolve(given, ProviderOverride(idle_timeout_s=2, default_model="other"))
    assert (target.model, target.idle_timeout_s, target.stream, target.system_prompt) == ("other", 2, False, "S")
    assert (target.connect_timeout_s, target.first_token_timeout_s, target.timeout_s) == (10, 300, None)


def test_options_are_merged_by_key() -> None:
    given = profile(extra=ProviderExtra(options={"temperature": 1, "seed": 7}))
    target = resolve(given, ProviderOverride(options={"temperature": 0}))
    assert target.options == {"temperature": 0, "seed": 7}


def test_another_origin_gets_neither_the_key_nor_the_headers() -> None:
    given = profile(api_key=Secret("sk"), extra=ProviderExtra(headers={"X-Org": Secret("org")}))
    moved = resolve(given, ProviderOverride(base_uri="http://elsewhere.example/v1", headers={"X-New": Secret("n")}))
    assert moved.api_key is None
    assert moved.headers == {"X-New": Secret("n")}


@pytest.mark.parametrize("base_uri", ["models.example", "http://models.example:80/v2", "http://MODELS.example/v1"])
def test_the_same_origin_keeps_both(base_uri: str) -> None:
    given = profile(api_key=Secret("sk"), extra=ProviderExtra(headers={"X-Org": Secret("org")}))
    target = resolve(given, ProviderOverride(base_uri=base_uri, headers={"x-org": Secret("new")}))
    assert target.api_key == Secret("sk")
    assert target.headers == {"x-org": Secret("new")}


@pytest.mark.parametrize("base_uri", ["https://models.example/v1", "http://models.example:8080/v1"])
def test_another_scheme_or_port_is_another_origin(base_uri: str) -> None:
    assert resolve(profile(api_key=Secret("sk")), ProviderOverride(base_uri=base_uri)).api_key is None


def test_each_kind_has_an_address_and_a_model() -> None:
    kinds = {kind: resolve(ProviderProfile(id="p", kind=kind)) for kind in ProviderKind}
    assert (kinds[ProviderKind.OPENAI].base_uri, kinds[ProviderKind.OPENAI].model) == (
        "https://api.openai.com/v1",
        "gpt-4o-mini",
    )
    assert (kinds[ProviderKind.OLLAMA].base_uri, kinds[ProviderKind.OLLAMA].model) == (
        "http://127.0.0.1:11434",
        "llama3",
    )
    assert kinds[ProviderKind.IMAGE].base_uri == "http://127.0.0.1:9000"


def test_the_built_in_profiles() -> None:
    assert [given.id for given in BUILT_IN_PROFILES] == [
        "default-openai",
        "default-ollama",
        "default-image",
        "default-local",
    ]
    assert resolve(BUILT_IN_PROFILES[-1]).command == ("cat",)


def test_an_address_that_cannot_be_used_names_profile_and_value() -> None:
    with pytest.raises(ProviderError, match=r"'p'.*ftp://x") as caught:
        resolve(profile(), ProviderOverride(base_uri="ftp://x"))
    assert not caught.value.retryable


def test_a_tool_gets_its_command_and_merged_environment() -> None:
    given = profile(
        kind=ProviderKind.LOCAL_TOOL, base_uri="", extra=ProviderExtra(command=["wc"], env={"A": "1", "B": "2"})
    )
    target = resolve(given, ProviderOverride(env={"B": "3"}))
    assert target.command == ("wc",)
    assert target.env == {"A": "1", "B": "3"}
    assert target.sandbox is True
