"""The token counts of an answer."""

from __future__ import annotations

from typing import Any

from pipeline_engine.models import Usage

MAX_TOKENS = 2**53  # JSON's readers keep whole numbers exact up to here; no answer has a billionth of it


def usage_of(value: Any, *, earlier: Usage | None = None) -> Usage | None:
    """The counts in a `usage` object in OpenAI's words, if there is one; older and newer APIs name them differently.

    What it does not tell stays as it was in `earlier`.
    """
    if not isinstance(value, dict):
        return earlier
    prompt = token_count(value.get("prompt_tokens", value.get("input_tokens")))
    completion = token_count(value.get("completion_tokens", value.get("output_tokens")))
    before = earlier or Usage()
    return Usage(
        prompt_tokens=before.prompt_tokens if prompt is None else prompt,
        completion_tokens=before.completion_tokens if completion is None else completion,
    )


def token_count(value: Any) -> int | None:
    """The number of tokens that a server told, or None for what can be none: it is stored, and budgets are made of it."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_TOKENS
    return value if is_count else None
