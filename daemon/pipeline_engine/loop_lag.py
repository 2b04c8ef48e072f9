"""How long the event loop is busy at a time: what is ready meanwhile has to wait, timers and clients too."""

from __future__ import annotations

import time

import trio

from pipeline_engine.histograms import Histogram

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)  # seconds


class LoopLag(trio.abc.Instrument):
    """Takes note of each turn of the loop, from the end of its wait to the next: no task has to wake up for that."""

    def __init__(self) -> None:
        self.turns = Histogram(BOUNDS)
        self._began: float | None = None

    def after_io_wait(self, timeout: float) -> None:
        self._began = time.monotonic()

    def before_io_wait(self, timeout: float) -> None:
        if self._began is not None:
            self.turns.add(time.monotonic() - self._began)
