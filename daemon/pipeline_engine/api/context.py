"""What all calls share: the configuration in force, and the engine once it is there."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import trio

from pipeline_engine.assembly import LocalEngine
from pipeline_engine.config import Config, LogLevel
from pipeline_engine.engine import Engine
from pipeline_engine.errors import PipelineEngineError, UnavailableError
from pipeline_engine.loop_lag import LoopLag

WORKER_THREADS = 2  # for large bodies and the files of artifacts


def _keep_log_level(_level: LogLevel) -> None:
    """For those who have no log of their own."""


class Api:
    """Handed to every handler. `local` is None while the engine starts: what it left is being read from the store."""

    def __init__(
        self,
        *,
        config: Config,
        local: LocalEngine | None = None,
        use_log_level: Callable[[LogLevel], None] = _keep_log_level,
        loop_lag: LoopLag | None = None,
    ) -> None:
        self.config = config
        self.loop_lag = loop_lag or LoopLag()
        self.local = local
        self.workers = trio.CapacityLimiter(WORKER_THREADS)
        self._use_log_level = use_log_level
        self._started = time.monotonic()

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._started

    @property
    def ready_local(self) -> LocalEngine:
        """Raises UnavailableError while the engine starts."""
        if self.local is None:
            raise UnavailableError("the daemon is starting")
        return self.local

    @property
    def engine(self) -> Engine:
        return self.ready_local.engine

    @property
    def refusal(self) -> PipelineEngineError | None:
        """Why no job would be accepted now; None when jobs are."""
        if self.local is None:
            return UnavailableError("the daemon is starting")
        return self.local.engine.refusal

    def use_config(self, config: Config) -> None:
        """This is in force now, but for the log level: a client may have set another one."""
        self.config = dataclasses.replace(config, log_level=self.config.log_level)

    def set_log_level(self, level: LogLevel) -> None:
        self._use_log_level(level)
        self.config = dataclasses.replace(self.config, log_level=level)
