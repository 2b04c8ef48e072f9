"""No text that passes here holds a known secret."""

from __future__ import annotations

import json

import pytest

from pipeline_engine import redaction
from pipeline_engine.decoding import Secret
from pipeline_engine.errors import ErrorCode, StepError
from pipeline_engine.models import ProviderExtra, ProviderKind, ProviderProfile
from pipeline_engine.redaction import Redactor, without_secrets


def knowing(*secrets: str) -> Redactor:
    redactor = Redactor()
    redactor.add(*map(Secret, secrets))
    return redactor


def test_a_secret_is_hidden_wherever_it_stands() -> None:
    redactor = knowing("sk-12345")
    assert redactor.redact("key sk-12345, xsk-12345x") == "key ***, x***x"
    assert redactor.redact("nothing here") == "nothing here"


def test_each_word_of_a_header_is_a_secret_but_not_its_scheme() -> None:
    assert knowing("Bearer abcdef").redact("Bearer abcdef; abcdef; a bearer of news") == "***; ***; a bearer of news"


@pytest.mark.parametrize("secret", ['quo"te\\back', "line\nbreak", "umläut-key", "it's"])
def test_a_secret_is_found_in_json_and_in_python_strings(secret: str) -> None:
    redactor = knowing(secret)
    for text in (json.dumps(secret), json.dumps(secret, ensure_ascii=False), repr(secret), repr(f"{secret}!")):
        assert "***" in redactor.redact(text), text


def test_the_longer_of_two_secrets_wins() -> None:
    assert knowing("abcd", "abcdefgh").redact("abcdefgh") == "***"


def test_short_texts_and_none_are_no_secrets() -> None:
    redactor = knowing("abc")
    redactor.add(None)
    assert redactor.redact("abc") == "abc"


def test_a_profile_brings_its_key_and_the_values_of_its_headers() -> None:
    redactor = Redactor()
    extra = ProviderExtra(headers={"X-Token": Secret("tok-98765")})
    redactor.add_profile(ProviderProfile(id="p", kind=ProviderKind.OPENAI, api_key=Secret("sk-12345"), extra=extra))
    assert redactor.redact("sk-12345 tok-98765 X-Token") == "*** *** X-Token"


def test_an_error_is_redacted_in_its_message_and_details() -> None:
    error = StepError(ErrorCode.TOOL_FAILED, "no sk-12345", details={"raw": ["sk-12345", {"a": "sk-12345"}], "n": 1})
    knowing("sk-12345").redact_error(error)
    assert (str(error), error.message) == ("no ***", "no ***")
    assert error.details == {"raw": ["***", {"a": "***"}], "n": 1}


def test_the_oldest_secrets_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "MAX_WORDS", 2)
    assert knowing("first", "second", "third").redact("first second third") == "first *** ***"


def test_a_query_is_a_secret_as_far_as_its_names_say_so() -> None:
    redactor = Redactor()
    address = "https://h/v1?api-version=2024-10-21&key=abc%2Fdef"
    redactor.add_profile(ProviderProfile(id="p", kind=ProviderKind.OPENAI, base_uri=address))
    assert redactor.redact("2024-10-21 abc%2Fdef abc/def") == "2024-10-21 *** ***"
    assert without_secrets(address) == "https://h/v1?api-version=2024-10-21&key=***"
    assert without_secrets("https://h/v1") == "https://h/v1"


@pytest.mark.parametrize("proxy", ["http://me:pass-word@proxy:3128", "me:pass-word@proxy:3128"])
def test_the_password_of_a_proxy_is_a_secret(proxy: str) -> None:
    redactor = Redactor()
    redactor.add_address(proxy)
    redactor.add_address("http://[nonsense")
    assert redactor.redact(proxy).endswith("me:***@proxy:3128")


def test_variables_of_a_tool_are_secrets_by_their_names() -> None:
    env = {"GH_TOKEN": "abcdefgh", "apiKey": "ijklmnop", "TOKENIZERS_PARALLELISM": "parallel", "USE_KEY": "true"}
    redactor = Redactor()
    redactor.add_profile(ProviderProfile(id="p", kind=ProviderKind.LOCAL_TOOL, extra=ProviderExtra(env=env)))
    assert redactor.redact("abcdefgh ijklmnop parallel true") == "*** *** parallel true"
