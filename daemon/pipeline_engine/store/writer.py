"""The one task that writes: all that waits, of all jobs, goes into one transaction (group commit)."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import trio

from pipeline_engine.errors import PipelineEngineError, StoreError, StoreFullError, UnavailableError
from pipeline_engine.histograms import Histogram
from pipeline_engine.store.access import StoreAccess
from pipeline_engine.store.base import JobChange, Operation, Store

log = logging.getLogger(__name__)

MAX_BATCH_BYTES = 8 * 1024 * 1024  # a transaction takes no more than this, or one operation, at a time
MAX_PENDING_BYTES = 4 * 1024 * 1024  # what may wait before those who need no answer have to wait too
MAX_REFUSABLE_BYTES = 64 * 1024 * 1024  # what may wait before new work is refused: a store that is too slow
FIRST_RETRY = 0.1  # seconds after a failed commit
MAX_RETRY = 5.0  # seconds
REST_PAUSE = 30.0  # seconds without anything to write, after which the store is put in order
COMMIT_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)  # seconds


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

    While the store fails, `failure` says why: operations that may be refused are, with an UnavailableError or a
    StoreFullError; all others wait until the store can be written again, which is tried every few seconds. Nothing is
    ever skipped or reordered. When `run` has ended, what still comes is refused, so that nobody waits for it in vain.
    """

    def __init__(self, *, store: Store) -> None:
        self._access = StoreAccess(store, threads=1)
        self._pending: deque[Write] = deque()
        self._pending_bytes = 0
        self._batch: list[Write] = []  # being committed
        self._alone = 0  # of the next pending writes each gets a transaction of its own
        self._wake = trio.Event()
        self._room = trio.Event()
        self._probes: list[trio.Event] = []
        self._closing = trio.Event()
        self._ended = False
        self._rest_at = float("inf")  # on trio's clock
        self._failure: PipelineEngineError | None = None
        self._retry_pause = FIRST_RETRY
        self.commits = 0
        self.commit_seconds = Histogram(COMMIT_BOUNDS)

    @property
    def failure(self) -> PipelineEngineError | None:
        """Why the store cannot be written now; None when it can."""
        # A new one each time: an exception that is raised again and again keeps all the frames it passed through.
        return None if self._failure is None else type(self._failure)(self._failure.message)

    @property
    def pending(self) -> tuple[int, int]:
        """How many operations wait to be committed or are being, and about how many bytes they hold."""
        return len(self._pending) + len(self._batch), self._pending_bytes

    def post(
        self,
        operation: Operation,
        *,
        size: int = 0,
        refusable: bool = False,
        on_commit: Callable[[], None] | None = None,
    ) -> Write:
        """Queue an operation; `on_commit` runs in the trio thread as soon as it is committed.

        `size` is about how many bytes it holds. If the operation is refusable, raises the store's failure, or
        UnavailableError when too much waits already.
        """
        if refusable and (failure := self.failure) is not None:
            raise failure
        if refusable and self._pending_bytes > MAX_REFUSABLE_BYTES:
            raise UnavailableError("the disk is too slow for what comes in; try again later")
        write = Write(operation, size=size, refusable=refusable, on_commit=on_commit)
        if self._ended:
            write.finish(self._given_up())
            return write
        self._pending.append(write)
        self._pending_bytes += size
        self._wake.set()
        return write

    async def execute(self, operation: Operation, *, size: int = 0, refusable: bool = True) -> None:
        """Queue an operation and return when it is committed."""
        await self.post(operation, size=size, refusable=refusable).wait()

    @property
    def has_room(self) -> bool:
        """Whether wait_for_room would not wait."""
        return self._pending_bytes <= MAX_PENDING_BYTES

    async def wait_for_room(self) -> None:
        """Return when less than MAX_PENDING_BYTES wait to be committed."""
        while not self.has_room:
            self._room = trio.Event() if self._room.is_set() else self._room
            await self._room.wait()
        await trio.lowlevel.checkpoint()

    async def prove_progress(self) -> None:
        """Return when the store has answered, be it with an error; it is asked to write if it is not writing."""
        probe = trio.Event()
        if self._ended:
            probe.set()
        else:
            self._probes.append(probe)
            self._wake.set()
        await probe.wait()

    def close(self) -> None:
        """Let `run` return once all that waits is committed."""
        self._closing.set()
        self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit until closed. While the store fails at closing time, what waits is given up."""
        task_status.started()
        try:
            while await self._commit_all() and not self._closing.is_set():
                await self._wait_for_work()
        finally:
            self._ended = True
            self._answer_probes()
            if self._pending:
                log.error("given up at shutdown: %d operations that the store did not take", len(self._pending))
            self._finish_each(self._pending, self._given_up)
            self._pending.clear()

    async def _wait_for_work(self) -> None:
        """Return when something may wait; in between the store is put in order, once after it was written."""
        with trio.move_on_at(self._rest_at):
            await self._wake.wait()
            self._wake = trio.Event()
            return
        rested = await self._access.call(self._access.store.rest)
        self._rest_at = float("inf") if rested else trio.current_time() + REST_PAUSE

    async def _commit_all(self) -> bool:
        """Commit what waits; False when the store fails at closing time."""
        while self._pending or self._probes or self._failure is not None:
            await self._commit()
            self._answer_probes()
            if self._failure is not None:
                if self._closing.is_set():
                    return False
                with trio.move_on_after(self._retry_pause):
                    await self._closing.wait()
                self._retry_pause = min(self._retry_pause * 2, MAX_RETRY)
        return True

    async def _commit(self) -> None:
        """Commit the next writes; if there are none, because the store failed, it is tried without any."""
        began = trio.current_time()
        self._batch = batch = [self._pending.popleft()] if self._pending else []
        try:
            # Shielded: whoever waits must hear of what is on the disk, even if we are being cancelled.
            with trio.CancelScope(shield=True):
                try:
                    await self._access.call(self._access.store.write, self._take(batch, alone=bool(self._alone)))
                finally:
                    self._alone = max(0, self._alone - 1)
                    self._batch = []
        except StoreError as exc:
            self._fail(exc)
            self._pending.extendleft(reversed(batch))
            self._refuse()
        except Exception as exc:
            # A fault of ours in one operation: the others must not suffer from it.
            if len(batch) > 1:
                self._pending.extendleft(reversed(batch))
                self._alone = len(batch)
            else:
                log.exception("an operation that the store can never take")
                self._finish(batch, exc)
        else:
            if batch:
                self.commits += 1
                self._rest_at = trio.current_time() + REST_PAUSE
                self.commit_seconds.add(trio.current_time() - began)
            self._recover()
            self._finish(batch)

    def _take(self, batch: list[Write], *, alone: bool) -> Iterator[Operation]:
        """The operations of a transaction, which are added to the batch as they are taken.

        This runs in the thread that writes: until it gets there, more may be posted, and need not wait for the next
        transaction. It is the only one that takes meanwhile.
        """
        for write in batch[:]:
            yield write.operation
        size = sum(write.size for write in batch)
        for _ in range(0 if alone else len(self._pending)):
            size += self._pending[0].size
            if size > MAX_BATCH_BYTES:
                return
            batch.append(self._pending.popleft())
            yield batch[-1].operation

    def _answer_probes(self) -> None:
        probes, self._probes = self._probes, []
        for probe in probes:
            probe.set()

    def _finish(self, batch: Sequence[Write], error: Exception | None = None) -> None:
        self._finish_each(batch, lambda: error)

    def _finish_each(self, writes: Iterable[Write], error: Callable[[], Exception | None]) -> None:
        for write in writes:
            self._pending_bytes -= write.size
            write.finish(error())
        if self.has_room:
            self._room.set()

    def _refuse(self) -> None:
        refused = [write for write in self._pending if write.refusable]
        self._pending = deque(write for write in self._pending if not write.refusable)
        self._alone = 0
        self._finish_each(refused, lambda: self.failure)

    def _given_up(self) -> PipelineEngineError:
        return self.failure or UnavailableError("the daemon is stopping")

    def _fail(self, exc: StoreError) -> None:
        if self._failure is None:
            log.error("the store cannot be written: %s", exc)
        words = f"the store cannot be written now: {exc.message}"
        self._failure = StoreFullError(words) if isinstance(exc, StoreFullError) else UnavailableError(words)

    def _recover(self) -> None:
        self._retry_pause = FIRST_RETRY
        if self._failure is not None:
            log.warning("the store can be written again")
            self._failure = None


def change_size(change: JobChange) -> int:
    """About how many bytes a change holds, for the limits on what waits."""
    size = 200 + len(change.job or b"")
    for event in change.events:
        size += len(event.line)
    for point in change.checkpoints:
        size += len(point.checkpoint)
    for record in change.executions:
        size += len(record.execution)
    return size if change.new is None else size + len(change.new.definition)
