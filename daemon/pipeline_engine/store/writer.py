"""The one task that writes: all that waits, of all jobs, goes into one transaction (group commit)."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

import trio

from pipeline_engine.errors import PipelineEngineError, StoreError, StoreFullError, UnavailableError
from pipeline_engine.store.access import StoreAccess
from pipeline_engine.store.base import JobChange, Operation, Store

log = logging.getLogger(__name__)

MAX_BATCH_BYTES = 8 * 1024 * 1024  # a transaction takes no more than this, or one operation, at a time
MAX_PENDING_BYTES = 4 * 1024 * 1024  # what may wait before those who need no answer have to wait too
FIRST_RETRY = 0.1  # seconds after a failed commit
MAX_RETRY = 5.0  # seconds


class Write:
    """One operation on its way to the disk."""

    __slots__ = ("_done", "error", "on_commit", "operation", "refusable", "size")

    def __init__(
        self, operation: Operation, *, size: int, refusable: bool, on_commit: Callable[[], None] | None
    ) -> None:
        self.operation = operation
        self.size = size
        self.refusable = refusable
        self.on_commit = on_commit
        self.error: Exception | None = None
        self._done: trio.Event | bool = False

    def finish(self, error: Exception | None = None) -> None:
        """The operation is committed, or given up with an error."""
        waiter, self._done, self.error = self._done, True, error
        if error is None and self.on_commit is not None:
            self.on_commit()
        if isinstance(waiter, trio.Event):
            waiter.set()

    async def wait(self) -> None:
        """Return when the operation is committed; raise what kept it from being."""
        if self._done is False:
            self._done = trio.Event()
        if isinstance(self._done, trio.Event):
            await self._done.wait()
        else:
            await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error


class StoreWriter:
    """Commits operations in the order in which they were posted.

    While the store fails, `healthy` is False: operations that may be refused are, with an UnavailableError or a
    StoreFullError; all others wait until the store can be written again. Nothing is ever skipped or reordered.
    """

    def __init__(self, *, store: Store) -> None:
        self._access = StoreAccess(store, threads=1)
        self._pending: deque[Write] = deque()
        self._pending_bytes = 0
        self._wake = trio.Event()
        self._room = trio.Event()
        self._closing = False
        self._failure: PipelineEngineError | None = None
        self.commits = 0

    @property
    def failure(self) -> PipelineEngineError | None:
        """Why the store cannot be written now; None when it can."""
        return self._failure

    def post(
        self,
        operation: Operation,
        *,
        size: int = 0,
        refusable: bool = False,
        on_commit: Callable[[], None] | None = None,
    ) -> Write:
        """Queue an operation; `on_commit` runs in the trio thread as soon as it is committed.

        `size` is about how many bytes it holds. Raises the store's failure if the operation is refusable.
        """
        if refusable and self._failure is not None:
            raise self._failure
        write = Write(operation, size=size, refusable=refusable, on_commit=on_commit)
        self._pending.append(write)
        self._pending_bytes += size
        self._wake.set()
        return write

    async def execute(self, operation: Operation, *, size: int = 0, refusable: bool = True) -> None:
        """Queue an operation and return when it is committed."""
        await self.post(operation, size=size, refusable=refusable).wait()

    async def wait_for_room(self) -> None:
        """Return when less than MAX_PENDING_BYTES wait to be committed."""
        while self._pending_bytes > MAX_PENDING_BYTES:
            self._room = trio.Event() if self._room.is_set() else self._room
            await self._room.wait()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Let `run` return once all that waits is committed."""
        self._closing = True
        self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit until closed. While the store fails at closing time, what waits is given up."""
        task_status.started()
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._pending:
                await self._commit(self._take_batch())
            if self._closing:
                return

    def _take_batch(self) -> list[Write]:
        batch = [self._pending.popleft()]
        size = batch[0].size
        while self._pending and size + self._pending[0].size <= MAX_BATCH_BYTES:
            write = self._pending.popleft()
            size += write.size
            batch.append(write)
        return batch

    async def _commit(self, batch: list[Write]) -> None:
        pause = FIRST_RETRY
        while batch:
            try:
                await self._write([write.operation for write in batch])
            except StoreError as exc:
                self._fail(exc)
                batch = self._refuse(batch, exc)
                if self._closing:
                    log.error("given up at shutdown: %d operations that the store did not take", len(batch))  # noqa: TRY400 - the cause was told when it began
                    self._finish(batch, exc)
                    return
                await trio.sleep(pause)
                pause = min(pause * 2, MAX_RETRY)
            except Exception as exc:
                # A fault of ours in one operation: the others must not suffer from it.
                if len(batch) > 1:
                    for write in batch:
                        await self._commit([write])
                else:
                    log.exception("an operation that the store can never take")
                    self._finish(batch, exc)
                return
            else:
                self._recover()
                self._finish(batch)
                return

    async def _write(self, operations: Sequence[Operation]) -> None:
        await self._access.call(self._access.store.write, operations)
        self.commits += 1

    def _finish(self, batch: list[Write], error: Exception | None = None) -> None:
        for write in batch:
            self._pending_bytes -= write.size
            write.finish(error)
        if self._pending_bytes <= MAX_PENDING_BYTES:
            self._room.set()

    def _refuse(self, batch: list[Write], exc: StoreError) -> list[Write]:
        assert self._failure is not None
        waiting = [*batch, *self._pending]
        self._pending.clear()
        self._finish([write for write in waiting if write.refusable], self._failure)
        return [write for write in waiting if not write.refusable]

    def _fail(self, exc: StoreError) -> None:
        if self._failure is None:
            log.error("the store cannot be written: %s", exc)
        words = f"the store cannot be written now: {exc.message}"
        self._failure = StoreFullError(words) if isinstance(exc, StoreFullError) else UnavailableError(words)

    def _recover(self) -> None:
        if self._failure is not None:
            log.warning("the store can be written again")
            self._failure = None


def change_size(change: JobChange) -> int:
    """About how many bytes a change holds, for the limits on what waits."""
    size = sum(len(event.line) for event in change.events) + 200
    size += sum(len(point.checkpoint) for point in change.checkpoints)
    return size + sum(len(record.execution) for record in change.executions) + len(change.job or b"")
