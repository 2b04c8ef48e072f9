"""What is counted of calls to providers beyond their number: tokens, retries, and how soon the first piece comes."""

from __future__ import annotations

from collections import Counter

from pipeline_engine.histograms import Histogram
from pipeline_engine.models import ProviderKind, Usage

#: The upper bounds of the histogram, in seconds: from a small local model to a large one that has to be loaded.
FIRST_TOKEN_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class CallStats:
    """Counts since the start, by kind of provider."""

    def __init__(self) -> None:
        self.prompt_tokens: Counter[ProviderKind] = Counter()
        self.completion_tokens: Counter[ProviderKind] = Counter()
        self.retries: Counter[ProviderKind] = Counter()
        self.first_token = {kind: Histogram(FIRST_TOKEN_BOUNDS) for kind in ProviderKind}

    def add_usage(self, kind: ProviderKind, usage: Usage) -> None:
        self.prompt_tokens[kind] += usage.prompt_tokens
        self.completion_tokens[kind] += usage.completion_tokens
