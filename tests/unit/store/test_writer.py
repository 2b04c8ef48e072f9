"""The writer's group commit, its order, and what it does while the store fails."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pipeline_engine.errors import StoreError, StoreFullError, UnavailableError
from pipeline_engine.models import JobId
from pipeline_engine.store.access import StoreAccess
from pipeline_engine.store.base import DeleteJobs, Operation, Store
from pipeline_engine.store.memory import MemoryStore
from pipeline_engine.store.writer import (
    MAX_BATCH_BYTES,
    MAX_PENDING_BYTES,
    MAX_REFUSABLE_BYTES,
    REST_PAUSE,
    StoreWriter,
)

T = TypeVar("T")


class ScriptedStore(MemoryStore):
    """Notes each transaction; fails while `failure` is set; a poisoned job can never be written."""

    def __init__(self) -> None:
        super().__init__()
        self.transactions: list[list[str]] = []
        self.failure: Exception | None = None
        self.rests: list[bool] = []  # what to answer when the store is to rest
        self.rested_at: list[float] = []

    def write(self, operations: Iterable[Operation]) -> None:
        if self.failure is not None:
            raise self.failure
        names = [operation.job_ids[0] for operation in operations if isinstance(operation, DeleteJobs)]
        if "poison" in names:
            raise LookupError("poison")
        self.transactions.append(list(names))

    def rest(self) -> bool:
        self.rested_at.append(trio.current_time())
        return self.rests.pop(0) if self.rests else True


def delete(name: str) -> DeleteJobs:
    return DeleteJobs([JobId(name)])


async def start(nursery: trio.Nursery, store: ScriptedStore) -> StoreWriter:
    writer = StoreWriter(store=store)
    await nursery.start(writer.run)
    return writer


async def test_all_that_waits_goes_into_one_transaction_in_order(nursery: trio.Nursery) -> None:
    store = ScriptedStore()
    writer = await start(nursery, store)
    committed: list[str] = []
    for name in "abc":
        writer.post(delete(name), on_commit=functools.partial(committed.append, name))
    assert committed == []
    await writer.execute(delete("d"))
    assert store.transactions == [["a", "b", "c", "d"]]
    assert committed == ["a", "b", "c"]
    nursery.cancel_scope.cancel()


async def test_what_comes_before_the_store_begins_goes_along(nursery: trio.Nursery) -> None:
    class SlowToBegin(ScriptedStore):
        def write(self, operations: Iterable[Operation]) -> None:
            for name in late:
                writer.post(delete(name), on_commit=functools.partial(committed.append, name))
            late.clear()
            super().write(operations)

    late, committed = ["b", "c"], list[str]()
    store = SlowToBegin()
    writer = await start(nursery, store)
    await writer.execute(delete("a"))
    await writer.execute(delete("d"))
    assert store.transactions == [["a", "b", "c"], ["d"]]
    assert committed == ["b", "c"]
    assert writer.pending == (0, 0)
    nursery.cancel_scope.cancel()


async def test_a_transaction_takes_a_bounded_number_of_bytes(nursery: trio.Nursery) -> None:
    store = ScriptedStore()
    writer = await start(nursery, store)
    for name in "abc":
        writer.post(delete(name), size=5 * 1024 * 1024)
    await writer.execute(delete("d"))
    assert store.transactions == [["a"], ["b"], ["c", "d"]]
    nursery.cancel_scope.cancel()


async def test_a_write_that_was_committed_before_anybody_waited_returns_at_once(nursery: trio.Nursery) -> None:
    writer = await start(nursery, ScriptedStore())
    write = writer.post(delete("a"))
    await wait_all_tasks_blocked()
    await write.wait()
    nursery.cancel_scope.cancel()


async def test_one_operation_that_can_never_be_written_harms_no_other(nursery: trio.Nursery) -> None:
    store = ScriptedStore()
    writer = await start(nursery, store)
    good, bad, also = (writer.post(delete(name)) for name in ("good", "poison", "also"))
    with pytest.raises(LookupError):
        await bad.wait()
    await good.wait()
    await also.wait()
    assert store.transactions == [["good"], ["also"]]
    assert writer.failure is None
    nursery.cancel_scope.cancel()


async def test_a_failing_store_refuses_what_may_be_refused_and_keeps_the_rest(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    store = ScriptedStore()
    writer = await start(nursery, store)
    store.failure = StoreError("the disk is gone")
    kept = writer.post(delete("kept"))
    refused = writer.post(delete("refused"), refusable=True)
    with pytest.raises(UnavailableError, match="the disk is gone"):
        await refused.wait()
    with pytest.raises(UnavailableError):
        writer.post(delete("later"), refusable=True)
    behind = writer.post(delete("behind"))
    await trio.sleep(60)
    assert store.transactions == []
    assert writer.failure is not None

    store.failure = None
    await kept.wait()
    await behind.wait()
    assert [name for names in store.transactions for name in names] == ["kept", "behind"]
    assert writer.failure is None
    writer.post(delete("again"), refusable=True)
    nursery.cancel_scope.cancel()


async def test_a_full_store_says_that_it_is_full(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    store = ScriptedStore()
    writer = await start(nursery, store)
    store.failure = StoreFullError("no space")
    with pytest.raises(StoreFullError):
        await writer.execute(delete("a"))
    nursery.cancel_scope.cancel()


async def test_those_who_post_much_wait_until_there_is_room(nursery: trio.Nursery) -> None:
    store = ScriptedStore()
    writer = StoreWriter(store=store)
    await writer.wait_for_room()
    writer.post(delete("a"), size=MAX_PENDING_BYTES + 1)
    with trio.move_on_after(0) as scope:
        await writer.wait_for_room()
    assert scope.cancelled_caught
    nursery.start_soon(writer.run)
    await writer.wait_for_room()
    assert store.transactions == [["a"]]
    nursery.cancel_scope.cancel()


async def test_closing_commits_what_waits_and_ends(nursery: trio.Nursery) -> None:
    store = ScriptedStore()
    writer = StoreWriter(store=store)
    writer.post(delete("a"))
    writer.close()
    await writer.run()
    assert store.transactions == [["a"]]


async def test_closing_while_the_store_fails_gives_up_instead_of_hanging(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = ScriptedStore()
    store.failure = StoreError("the disk is gone")
    writer = StoreWriter(store=store)
    write = writer.post(delete("a"))
    writer.close()
    await writer.run()
    with pytest.raises(UnavailableError, match="the disk is gone"):
        await write.wait()


async def test_a_store_that_failed_is_tried_again_even_if_nothing_waits(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    store = ScriptedStore()
    writer = await start(nursery, store)
    store.failure = StoreFullError("no space")
    with pytest.raises(StoreFullError):
        await writer.execute(delete("a"))
    await trio.sleep(60)
    assert writer.failure is not None
    store.failure = None
    await trio.sleep(10)
    assert writer.failure is None
    await writer.execute(delete("b"))
    assert store.transactions == [[], ["b"]]
    nursery.cancel_scope.cancel()


async def test_refusals_do_not_pile_up_the_frames_of_those_before(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    store = ScriptedStore()
    writer = await start(nursery, store)
    store.failure = StoreFullError("no space")
    depths = []
    for _ in range(3):
        with pytest.raises(StoreFullError) as refusal:
            await writer.execute(delete("a"))
        depths.append(len(refusal.traceback))
    assert depths[1] == depths[2]
    nursery.cancel_scope.cancel()


async def test_what_is_tried_alone_stays_in_order_when_the_store_fails_meanwhile(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    class FailingAfterThePoison(ScriptedStore):
        def write(self, operations: Iterable[Operation]) -> None:
            taken = list(operations)
            try:
                super().write(taken)
            except LookupError:
                if len(taken) == 1:
                    self.failure = StoreError("the disk is gone")
                raise

    store = FailingAfterThePoison()
    writer = await start(nursery, store)
    for name in ("a", "poison", "b", "c"):
        writer.post(delete(name))
    await trio.sleep(1)
    writer.post(delete("d"))
    store.failure = None
    await writer.execute(delete("e"), refusable=False)
    assert [name for names in store.transactions for name in names] == ["a", "b", "c", "d", "e"]
    nursery.cancel_scope.cancel()


async def test_nobody_waits_for_a_writer_that_was_cancelled() -> None:
    writer = StoreWriter(store=ScriptedStore())
    before = writer.post(delete("a"))
    with trio.CancelScope() as scope:
        scope.cancel()
        await writer.run()
    behind = writer.post(delete("b"))
    with trio.fail_after(1):
        await before.wait()  # its commit had begun
        with pytest.raises(UnavailableError):
            await behind.wait()


async def test_progress_is_proved_by_a_write_that_changes_nothing(nursery: trio.Nursery) -> None:
    store = ScriptedStore()
    writer = await start(nursery, store)
    await writer.prove_progress()
    assert store.transactions == [[]]
    assert writer.commits == 0
    writer.close()


async def test_a_store_that_fails_makes_progress_too(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    store = ScriptedStore()
    store.failure = StoreError("disk I/O error")
    writer = await start(nursery, store)
    for _ in range(3):
        await writer.prove_progress()
    assert writer.failure is not None
    store.failure = None
    writer.close()


async def test_a_store_that_hangs_makes_none(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await start(nursery, ScriptedStore())
    answers = trio.Event()

    async def hang(*arguments: object) -> None:
        await answers.wait()

    monkeypatch.setattr(writer._access, "call", hang)
    with trio.move_on_after(60) as scope:
        await writer.prove_progress()
    assert scope.cancelled_caught
    answers.set()
    writer.close()


class SlowAccess(StoreAccess):
    """Each call takes a while, on trio's clock."""

    seconds = 0.0

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        await trio.sleep(self.seconds)
        return await super().call(function, *arguments)


async def start_slowly(nursery: trio.Nursery, store: Store, seconds: float) -> StoreWriter:
    writer = StoreWriter(store=store)
    writer._access = SlowAccess(store, threads=1)
    writer._access.seconds = seconds
    await nursery.start(writer.run)
    return writer


async def test_a_slow_store_makes_progress_with_every_commit_that_ends(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    writer = await start_slowly(nursery, ScriptedStore(), seconds=12)
    for _ in range(10):
        writer.post(delete("a"), size=MAX_BATCH_BYTES)
    await trio.sleep(5)
    began = trio.current_time()
    await writer.prove_progress()
    assert trio.current_time() - began == 7  # the commit under way is enough of an answer
    writer.close()


async def test_what_waits_for_a_slow_store_is_bounded_by_refusals(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    store = ScriptedStore()
    writer = await start_slowly(nursery, store, seconds=5)
    size = 1024 * 1024
    accepted = MAX_REFUSABLE_BYTES // size + 1
    for _ in range(accepted):
        writer.post(delete("new"), size=size, refusable=True)
    with pytest.raises(UnavailableError, match="the disk is too slow"):
        writer.post(delete("new"), size=size, refusable=True)
    writer.post(delete("of a job that runs"), size=size)
    await trio.sleep(1000)
    writer.post(delete("new"), size=size, refusable=True)
    await trio.sleep(1000)
    assert sum(map(len, store.transactions)) == accepted + 2
    writer.close()


async def test_after_its_end_progress_is_not_waited_for(nursery: trio.Nursery) -> None:
    writer = await start(nursery, ScriptedStore())
    writer.close()
    await wait_all_tasks_blocked()
    await writer.prove_progress()


async def test_a_store_rests_once_when_nothing_has_been_written_for_a_while(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    store = ScriptedStore()
    writer = await start(nursery, store)
    await trio.sleep(1000)
    assert store.rested_at == []  # there was nothing to put in order
    for _ in range(10):
        await writer.execute(delete("a"))
        await trio.sleep(REST_PAUSE - 1)
        await writer.prove_progress()  # writes nothing that counts
    last = trio.current_time() - (REST_PAUSE - 1)
    await trio.sleep(1000)
    assert store.rested_at == [last + REST_PAUSE]


async def test_a_store_that_cannot_rest_just_now_is_asked_again(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    store = ScriptedStore()
    store.rests = [False, False, True]
    writer = await start(nursery, store)
    await writer.execute(delete("a"))
    began = trio.current_time()
    await trio.sleep(1000)
    assert store.rested_at == [began + n * REST_PAUSE for n in (1, 2, 3)]
    await writer.execute(delete("b"))
    assert len(store.transactions) == 2


async def test_what_waits_is_told_and_commits_are_timed(autojump_clock: MockClock) -> None:
    store = ScriptedStore()
    async with trio.open_nursery() as nursery:
        writer = await start(nursery, store)
        store.failure = StoreError("broken")
        write = writer.post(delete("a"), size=30)
        writer.post(delete("b"), size=4)
        await wait_all_tasks_blocked()
        assert writer.pending == (2, 34)
        assert writer.commit_seconds.counts[-1] == 0
        store.failure = None
        await write.wait()
        assert writer.pending == (0, 0)
        assert writer.commit_seconds.counts[-1] == writer.commits == 1
        nursery.cancel_scope.cancel()
