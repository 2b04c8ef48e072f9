"""The token counts of an answer, in OpenAI's words."""

from __future__ import annotations

from typing import Any

from pipeline_engine.models import Usage


def usage_of(value: Any) -> Usage | None:
    """The counts in a `usage` object, if there is one; older and newer APIs name them differently."""
    if not isinstance(value, dict):
        return None
    prompt = value.get("prompt_tokens", value.get("input_tokens"))
    completion = value.get("completion_tokens", value.get("output_tokens"))
    return Usage(
        prompt_tokens=prompt if isinstance(prompt, int) else 0,
        completion_tokens=completion if isinstance(completion, int) else 0,
    )
