"""The jobs that wait to run: by priority, then by arrival."""

from __future__ import annotations

import heapq
import itertools

from pipeline_engine.job_runner import LiveJob

RESUMED_PRIORITY = 1000  # above all that a request may ask for: a resumed job has its place already
MAX_DEAD = 64  # entries of removed jobs in the heap beside one for each that waits


class JobQueue:
    """A heap of live jobs. A job that is taken out early leaves a dead entry behind, which `pop` passes over."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, LiveJob]] = []
        self._waiting: set[LiveJob] = set()
        self._arrivals = itertools.count()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, live: LiveJob) -> bool:
        return live in self._waiting

    def push(self, live: LiveJob) -> None:
        priority = RESUMED_PRIORITY if live.resumed else live.job.priority
        heapq.heappush(self._heap, (-priority, next(self._arrivals), live))
        self._waiting.add(live)

    def pop(self) -> LiveJob:
        """Raises LookupError when no job waits."""
        while self._heap:
            _, _, live = heapq.heappop(self._heap)
            if live in self._waiting:
                self._waiting.discard(live)
                return live
        raise LookupError("no job is waiting")

    def remove(self, live: LiveJob) -> None:
        self._waiting.remove(live)
        if len(self._heap) > 2 * len(self._waiting) + MAX_DEAD:
            self._heap = [entry for entry in self._heap if entry[2] in self._waiting]
            heapq.heapify(self._heap)
