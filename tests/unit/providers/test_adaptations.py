"""Parameters that servers refuse."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.provider_calls import target_of

from pipeline_engine.providers.adaptations import Adaptations
from pipeline_engine.providers.failures import AnsweredError, failure

TARGET = target_of("http://models.example/v1")
SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {}}}


def refusal(status: int = 400, **fields: Any) -> AnsweredError:
    body = json.dumps({"error": fields}).encode()
    return failure(TARGET, status=status, headers={}, body=body, now=datetime(2026, 1, 1, tzinfo=UTC))


def adapted(body: dict[str, Any], *errors: AnsweredError) -> dict[str, Any] | None:
    """The body after these errors; None if one of them taught nothing."""
    adaptations = Adaptations()
    adaptation = adaptations.recall(TARGET)
    for error in errors:
        sent, _ = adaptation.apply(body)
        if not adaptations.learn(TARGET, adaptation, sent, error):
            return None
    return adaptation.apply(body)[0]


def test_max_tokens_is_renamed_once_and_then_left_out() -> None:
    first = refusal(param="max_tokens", code="unsupported_parameter")
    second = refusal(param="max_completion_tokens", code="unsupported_parameter")
    assert adapted({"max_tokens": 64}, first) == {"max_completion_tokens": 64}
    assert adapted({"max_tokens": 64}, first, second) == {}
    assert adapted({"max_completion_tokens": 64}, second) == {"max_tokens": 64}


def test_a_server_without_codes_may_name_the_other_parameter() -> None:
    named = refusal(param="max_tokens", message="use 'max_completion_tokens' instead")
    assert adapted({"max_tokens": 64}, named) == {"max_completion_tokens": 64}


def test_an_unsupported_option_is_left_out() -> None:
    assert adapted({"temperature": 0.3, "seed": 1}, refusal(param="temperature", code="unsupported_value")) == {
        "seed": 1
    }


def test_a_schema_falls_back_to_any_json_and_then_to_nothing() -> None:
    named = refusal(param="response_format", message="not supported")
    assert adapted({"response_format": SCHEMA}, named) == {"response_format": {"type": "json_object"}}
    assert adapted({"response_format": SCHEMA}, named, named) == {}


@pytest.mark.parametrize(
    "error",
    [
        refusal(message="Unrecognized request argument supplied: stream_options"),
        refusal(422, param="stream_options", message="extra"),
    ],
)
def test_stream_options_are_left_out_without_a_warning(error: AnsweredError) -> None:
    adaptations = Adaptations()
    adaptation = adaptations.recall(TARGET)
    body = {"stream": True, "stream_options": {"include_usage": True}}
    assert adaptations.learn(TARGET, adaptation, body, error)
    assert adaptation.apply(body) == ({"stream": True}, [])


@pytest.mark.parametrize(
    "error",
    [
        refusal(param="max_tokens", code="integer_above_max_value", message="max_tokens is too large"),
        refusal(param="temperature", code="invalid_type"),
        refusal(param="messages", code="unsupported_value"),
        refusal(param="model", code="unsupported_value"),
        refusal(param="top_p", code="unsupported_value"),
        refusal(message="bad request"),
        refusal(500, param="temperature", code="unsupported_value"),
    ],
)
def test_what_is_wrong_with_the_request_itself_is_not_adapted_away(error: AnsweredError) -> None:
    body = {"model": "m", "messages": [], "max_tokens": 5, "temperature": 1}
    assert adapted(body, error) is None


def test_what_was_refused_is_remembered_for_address_and_model_with_a_warning_each_time() -> None:
    adaptations = Adaptations()
    body = {"max_tokens": 5}
    assert adaptations.learn(
        TARGET, adaptations.recall(TARGET), body, refusal(param="max_tokens", code="unsupported_parameter")
    )
    sent, warnings = adaptations.recall(TARGET).apply(body)
    assert sent == {"max_completion_tokens": 5}
    assert [(warning["code"], warning["parameter"]) for warning in warnings] == [
        ("parameter_not_supported", "max_tokens")
    ]
    assert adaptations.recall(target_of("http://models.example/v1", model="other")).apply(body) == (body, [])
    assert adaptations.recall(target_of("http://other.example/v1")).apply(body) == (body, [])


def test_a_refusal_that_blames_the_messages_is_not_remembered() -> None:
    adaptations = Adaptations()
    adaptation = adaptations.recall(TARGET)
    body = {"response_format": {"type": "json_object"}, "messages": []}
    error = refusal(param="messages", message="'messages' must contain 'json' to use 'response_format'")
    assert adaptations.learn(TARGET, adaptation, body, error)
    assert adaptation.apply(body)[0] == {"messages": []}
    assert adaptations.recall(TARGET).apply(body)[0] == body
