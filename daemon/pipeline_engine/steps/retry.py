"""When a failed provider call is tried again, and after what pause."""

from __future__ import annotations

import random

from pipeline_engine.errors import ProviderError
from pipeline_engine.models import Retry

LOADING_POLL_MAX = 2.0  # seconds between two looks at a server that loads a model
LOADING_POLL_FIRST = 0.25


def pause_before_retry(error: ProviderError, *, failures: int, retry: Retry, jitter: random.Random) -> float | None:
    """Seconds to wait after the `failures`-th failure (from 1), or None when there is no further attempt.

    Full jitter: anything between nothing and the exponential bound, so that jobs that failed together do not come
    back together. What the provider asks for goes before that; if it asks for more than max_backoff_s, we give up.
    """
    if not error.retryable or failures >= retry.max_attempts:
        return None
    if error.retry_after_s is not None:
        return error.retry_after_s if error.retry_after_s <= retry.max_backoff_s else None
    # The exponent is bounded: 2 ** 1000 is no float.
    bound = min(retry.max_backoff_s, retry.backoff_s * 2.0 ** min(failures - 1, 60))
    return jitter.uniform(0, bound)


def pause_while_loading(polls: int, *, asked_s: float | None) -> float:
    """Seconds until the next look at a server that loads a model, after so many looks (from 0).

    It may ask for a longer pause; a shorter one would keep both sides busy.
    """
    return max(asked_s or 0.0, min(LOADING_POLL_MAX, LOADING_POLL_FIRST * 2.0 ** min(polls, 10)))
