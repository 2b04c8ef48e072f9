"""What a failed call says to do."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline_engine.decoding import Secret
from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.models import ManagedServer, ProviderExtra, ProviderKind, ProviderOverride, ProviderProfile
from pipeline_engine.providers.connection import CannotConnectError
from pipeline_engine.providers.hints import add_hint, hint_for
from pipeline_engine.providers.targets import BUILT_IN_PROFILES, resolve

REFUSED = CannotConnectError(ErrorCode.PROVIDER_UNREACHABLE, "cannot connect to it (connection refused)")
BUILT_IN = {profile.id: profile for profile in BUILT_IN_PROFILES}
KEY = Secret("sk-secret")


def hint(error: ProviderError | ErrorCode, profile: ProviderProfile, **override: Any) -> str | None:
    if isinstance(error, ErrorCode):
        error = ProviderError(error, "it failed")
    return hint_for(error, resolve(profile, ProviderOverride(**override)), profile)


def openai(**fields: Any) -> ProviderProfile:
    return ProviderProfile(id="mine", kind=ProviderKind.OPENAI, **fields)


def test_ollama_that_does_not_run() -> None:
    words = hint(REFUSED, BUILT_IN["default-ollama"])
    assert words is not None
    assert "`ollama serve`" in words
    assert "OLLAMA_HOST" in words
    # The API like OpenAI's that Ollama has beside its own.
    words = hint(REFUSED, openai(base_uri="http://localhost:11434/v1"))
    assert words is not None
    assert "`ollama serve`" in words


def test_another_server_of_this_machine_that_does_not_run() -> None:
    words = hint(REFUSED, openai(base_uri="http://127.0.0.1:8000/v1"))
    assert words == "is the model server running? its address is the base_uri of the profile 'mine'"


@pytest.mark.parametrize(
    ("error", "profile"),
    [
        (REFUSED, openai(base_uri="https://models.example/v1")),
        # The daemon starts it, and says itself why it could not.
        (
            REFUSED,
            openai(
                base_uri="http://127.0.0.1:1",
                extra=ProviderExtra(server=ManagedServer(command=["serve"], ready="/health")),
            ),
        ),
        # It was there a moment ago.
        (ErrorCode.PROVIDER_UNREACHABLE, BUILT_IN["default-ollama"]),
        (ErrorCode.PROVIDER_ERROR, BUILT_IN["default-ollama"]),
        (ErrorCode.TIMEOUT, BUILT_IN["default-ollama"]),
    ],
)
def test_nothing_is_said_where_nothing_is_known(error: ProviderError | ErrorCode, profile: ProviderProfile) -> None:
    assert hint(error, profile) is None


def test_a_model_that_is_not_there() -> None:
    assert hint(ErrorCode.MODEL_NOT_FOUND, BUILT_IN["default-ollama"]) == "to get it, run: ollama pull llama3"
    override = {"default_model": "qwen3:8b"}
    words = hint(ErrorCode.MODEL_NOT_FOUND, BUILT_IN["default-ollama"], **override)
    assert words == "to get it, run: ollama pull qwen3:8b"
    words = hint(ErrorCode.MODEL_NOT_FOUND, openai(api_key=KEY))
    assert words is not None
    assert "`pipeline-engine providers test mine --json`" in words


def test_where_a_key_is_to_be_set() -> None:
    words = hint(ErrorCode.PROVIDER_AUTH, BUILT_IN["default-openai"])
    assert words is not None
    assert "has no key: set PIPELINE_ENGINE_OPENAI_API_KEY and name the profile openai-cli" in words
    words = hint(ErrorCode.PROVIDER_AUTH, openai())
    assert words is not None
    assert "api_key_env or api_key_file" in words
    assert "'mine' in [[providers]]" in words


def test_a_key_that_is_refused_or_not_sent() -> None:
    words = hint(ErrorCode.PROVIDER_AUTH, openai(api_key=KEY))
    assert words == "the server does not take the key of the profile 'mine'"
    words = hint(ErrorCode.PROVIDER_AUTH, openai(api_key=KEY), base_uri="https://other.example/v1")
    assert words is not None
    assert "is not sent to" in words
    words = hint(ErrorCode.PROVIDER_AUTH, openai(extra=ProviderExtra(headers={"x-key": KEY})))
    assert words == "the server does not take the headers of the profile 'mine'"


def test_the_message_ends_with_the_hint_everywhere() -> None:
    error = ProviderError(ErrorCode.PROVIDER_QUOTA, "answered 429: quota exceeded")
    profile = openai(api_key=KEY)
    add_hint(error, resolve(profile), profile)
    expected = "answered 429: quota exceeded; the account behind the key of the profile 'mine' has no credit left"
    assert error.message == str(error) == expected
