"""What servers tell of tokens: counts, or nothing."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline_engine.models import Usage
from pipeline_engine.providers.usage import usage_of


@pytest.mark.parametrize(
    ("value", "usage"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}, Usage(prompt_tokens=7, completion_tokens=2)),
        ({"input_tokens": 7, "output_tokens": 2}, Usage(prompt_tokens=7, completion_tokens=2)),
        ({"prompt_tokens": 3}, Usage(prompt_tokens=3)),
        ({}, Usage()),
        (None, None),
        ([], None),
    ],
)
def test_counts_are_read_by_either_name(value: Any, usage: Usage | None) -> None:
    assert usage_of(value) == usage


@pytest.mark.parametrize(
    ("value", "usage"),
    [
        ({}, Usage(prompt_tokens=7, completion_tokens=5)),
        ({"completion_tokens": 6}, Usage(prompt_tokens=7, completion_tokens=6)),
        ({"input_tokens": 8, "output_tokens": "many"}, Usage(prompt_tokens=8, completion_tokens=5)),
        ({"prompt_tokens": 0, "completion_tokens": None}, Usage(prompt_tokens=0, completion_tokens=5)),
        ([], Usage(prompt_tokens=7, completion_tokens=5)),
    ],
)
def test_what_is_not_told_again_stays(value: Any, usage: Usage) -> None:
    assert usage_of(value, earlier=Usage(prompt_tokens=7, completion_tokens=5)) == usage


@pytest.mark.parametrize("wrong", [True, False, -1, 2**53, 10**400, 1.0, "7", None, [7]])
def test_what_is_no_count_of_tokens_counts_nothing(wrong: Any) -> None:
    usage = usage_of({"prompt_tokens": wrong, "completion_tokens": 2})
    assert usage == Usage(completion_tokens=2)
    assert type(usage.prompt_tokens) is int
