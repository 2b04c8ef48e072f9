"""No text that passes here holds a known secret."""

from __future__ import annotations

import json

import pytest

from pipeline_engine import redaction
from pipeline_engine.decoding import Secret
from pipeline_engine.errors import ErrorCode, StepError
from pipeline_engine.models import ProviderExtra, ProviderKind, ProviderProfile
from pipeline_engine.redaction import Redactor


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
