"""What is counted of calls to providers beyond their number: tokens, retries, and how soon the first piece comes."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from pipeline_engine.models import ProviderKind, Usage

#: The upper bounds of the histogram, in seconds: from a small local model to a large one that has to be loaded.
FIRST_TOKEN_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


@dataclass(slots=True)
class Histogram:
    """How many values were at most each bound, as Prometheus counts them: the last count is of all."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        for index in range(bisect_left(self.bounds, value), len(self.counts)):
            self.counts[index] += 1
        self.total += value


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
