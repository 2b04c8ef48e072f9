"""The limits of a provider: how many calls run at once and start in a minute, shared fairly by all jobs."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import chain

import trio

WINDOW = 60.0  # seconds: what "a minute" means


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What a profile allows; None is no limit."""

    max_concurrency: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def over(self, other: LimitSettings) -> LimitSettings:
        """These, and what the other says where these say nothing."""
        return LimitSettings(
            other.max_concurrency if self.max_concurrency is None else self.max_concurrency,
            other.requests_per_minute if self.requests_per_minute is None else self.requests_per_minute,
            other.tokens_per_minute if self.tokens_per_minute is None else self.tokens_per_minute,
        )


NO_LIMITS = LimitSettings()


@dataclass(eq=False, slots=True)
class _Start:
    """What one call takes from a minute."""

    time: float
    amount: int
    override: LimitSettings


@dataclass(eq=False, slots=True)
class Permit:
    """The right to make one call. Who holds it says how the call ended, before giving it back."""

    tokens: int
    override: LimitSettings = NO_LIMITS
    epoch: int = 0
    started: _Start | None = None
    tokens_used: int | None = None
    succeeded: bool = False
    rate_limited: bool = False


class _Waiter:
    """One who wants a permit, and then has it: the context manager that `permit` gives."""

    __slots__ = ("_timer", "_woken", "granted", "job_id", "limiter", "permit")

    def __init__(self, limiter: ProviderLimiter, job_id: str, permit: Permit) -> None:
        self.limiter = limiter
        self._woken: trio.Event | None = None
        self._timer: trio.CancelScope | None = None
        self.job_id = job_id
        self.permit = permit
        self.granted = False

    async def __aenter__(self) -> Permit:
        await trio.lowlevel.checkpoint_if_cancelled()  # a permit that is there at once costs no turn of the event loop
        self.limiter.enqueue(self)
        try:
            if not self.granted:
                await self._wait()
        except BaseException:
            if self.granted:
                self.limiter.give_back(self)
            else:
                self.limiter.withdraw(self)
            raise
        return self.permit

    async def __aexit__(self, *_: object) -> None:
        self.limiter.give_back(self)

    async def _wait(self) -> None:
        self._woken = trio.Event()
        while not self.granted:
            with trio.CancelScope() as self._timer:
                self.limiter.grant()
                await self._woken.wait()

    def grant(self) -> None:
        self.granted = True
        if self._woken is not None:
            self._woken.set()

    def look_again_at(self, time: float) -> None:
        """As the head of the queue, ask anew when the minute has room."""
        if self._timer is not None:
            self._timer.deadline = time


class ProviderLimiter:
    """Hands out permits: in turn to the jobs that wait, and to each job's calls in their order.

    Every change of state is a synchronous function. Only the first waiter of the first job has a timer; all others
    sleep until a permit is given to them.
    """

    def __init__(self, settings: LimitSettings) -> None:
        self._max = _concurrency_of(settings)
        self._limit = self._max
        self._epoch = 0
        self._running: set[_Waiter] = set()
        self._queues: OrderedDict[str, deque[_Waiter]] = OrderedDict()
        self._requests = _Minute(settings.requests_per_minute)
        self._tokens = _Minute(settings.tokens_per_minute)

    def change(self, settings: LimitSettings) -> None:
        """Other limits from now on: for those who wait too, and with what runs and has run taken into account."""
        was_narrowed = self._limit < self._max
        self._max = _concurrency_of(settings)
        self._limit = min(self._limit, self._max) if was_narrowed and math.isfinite(self._max) else self._max
        self._requests.limit = settings.requests_per_minute
        self._tokens.limit = settings.tokens_per_minute
        self.grant()

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, waits, or counts in the minute: a new limiter would be as good."""
        now = trio.current_time()
        return not (self._running or self._queues or self._requests.holds(now) or self._tokens.holds(now))

    @property
    def in_flight(self) -> int:
        """How many permits are out."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    @property
    def concurrency(self) -> float:
        """How many calls may run at once now: at most `max_concurrency`, less after a 429."""
        return max(1, math.floor(self._limit)) if math.isfinite(self._limit) else math.inf

    def permit(
        self, *, job_id: str, tokens: int = 0, override: LimitSettings = NO_LIMITS
    ) -> AbstractAsyncContextManager[Permit]:
        """Wait for the right to make one call of about that many tokens, and have it in the block."""
        return _Waiter(self, job_id, Permit(tokens, override))

    def overrides(self) -> set[LimitSettings]:
        """Those of the calls that run, wait, or count in the minute."""
        waiters = chain(self._running, *self._queues.values())
        return {waiter.permit.override for waiter in waiters} | self._requests.overrides() | self._tokens.overrides()

    def hand_over(self, override: LimitSettings, other: ProviderLimiter) -> None:
        """Let another go on with the calls of this override as if they had always been there; then change both."""
        for waiter in [waiter for waiter in self._running if waiter.permit.override == override]:
            self._running.remove(waiter)
            other._running.add(waiter)
            waiter.limiter = other
            waiter.permit.epoch = other._epoch
        for job_id, queue in list(self._queues.items()):
            for waiter in [waiter for waiter in queue if waiter.permit.override == override]:
                queue.remove(waiter)
                other._queues.setdefault(job_id, deque()).append(waiter)
                waiter.limiter = other
            if not queue:
                del self._queues[job_id]
        self._requests.hand_over(override, other._requests)
        self._tokens.hand_over(override, other._tokens)
        if self._limit < self._max:  # the server has said that these calls were too many
            other._limit = min(self._limit, other._limit)

    # for the waiters

    def enqueue(self, waiter: _Waiter) -> None:
        self._queues.setdefault(waiter.job_id, deque()).append(waiter)
        self.grant()

    def withdraw(self, waiter: _Waiter) -> None:
        queue = self._queues[waiter.job_id]
        queue.remove(waiter)
        if not queue:
            del self._queues[waiter.job_id]
        # It may have been the head, and the timekeeper of all others.
        self.grant()

    def give_back(self, waiter: _Waiter) -> None:
        self._running.remove(waiter)
        permit = waiter.permit
        # One overload refuses many calls at once: only calls that began after the last halving may halve again.
        if permit.rate_limited and permit.epoch == self._epoch and math.isfinite(self._limit):
            self._limit = max(1.0, self.concurrency / 2)
            self._epoch += 1
        elif permit.succeeded:
            self._limit = min(self._max, self._limit + 1 / self._limit)
        if permit.started is not None and permit.tokens_used is not None:
            self._tokens.correct(permit.started, permit.tokens_used)
        self.grant()

    def grant(self) -> None:
        """Give permits to those whose turn it is."""
        while self._queues and len(self._running) < self.concurrency:
            job_id, queue = next(iter(self._queues.items()))
            head = queue[0]
            now = trio.current_time()
            start = max(self._requests.next_start(1, now), self._tokens.next_start(head.permit.tokens, now))
            if start > now:
                head.look_again_at(start)
                return
            queue.popleft()
            if queue:
                self._queues.move_to_end(job_id)
            else:
                del self._queues[job_id]
            self._running.add(head)
            self._requests.add(1, now, head.permit.override)
            head.permit.started = self._tokens.add(head.permit.tokens, now, head.permit.override)
            head.permit.epoch = self._epoch
            head.grant()


class ProfileLimits:
    """The limiters of one profile: its own, and one for each set of limits that overrides put in their place.

    They outlive changes of the profile, which would otherwise forget what is under way.
    """

    def __init__(self, settings: LimitSettings) -> None:
        self._settings = settings
        self.own = ProviderLimiter(settings)
        self._overridden: dict[LimitSettings, ProviderLimiter] = {}

    def permit(
        self, *, job_id: str, tokens: int = 0, override: LimitSettings = NO_LIMITS
    ) -> AbstractAsyncContextManager[Permit]:
        """As a limiter's, of that which calls with this override have, whatever the profile comes to say."""
        return self.get(override).permit(job_id=job_id, tokens=tokens, override=override)

    def get(self, override: LimitSettings) -> ProviderLimiter:
        """The limiter of calls with this override, in which None is what the profile says."""
        if self._changes_nothing(override):
            return self.own
        limiter = self._overridden.get(override)
        if limiter is None:
            self._overridden = {key: kept for key, kept in self._overridden.items() if not kept.is_idle}
            limiter = self._overridden[override] = ProviderLimiter(override.over(self._settings))
        return limiter

    def change(self, settings: LimitSettings) -> None:
        """The profile says something else now: each call goes on in the limiter that is now the one of its override."""
        self._settings = settings
        for override in self.own.overrides():
            if not self._changes_nothing(override):
                self.own.hand_over(override, self.get(override))
        for override, limiter in list(self._overridden.items()):
            if self._changes_nothing(override):
                limiter.hand_over(override, self.own)
                del self._overridden[override]
        self.own.change(settings)
        for override, limiter in self._overridden.items():
            limiter.change(override.over(settings))

    def lift(self) -> None:
        """No limits until the next change, not even those of overrides."""
        for limiter in self._all():
            limiter.change(NO_LIMITS)

    @property
    def is_idle(self) -> bool:
        return all(limiter.is_idle for limiter in self._all())

    @property
    def in_flight(self) -> int:
        return sum(limiter.in_flight for limiter in self._all())

    @property
    def waiting(self) -> int:
        return sum(limiter.waiting for limiter in self._all())

    def _changes_nothing(self, override: LimitSettings) -> bool:
        return override == NO_LIMITS or override.over(self._settings) == self._settings

    def _all(self) -> list[ProviderLimiter]:
        return [self.own, *self._overridden.values()]


def _concurrency_of(settings: LimitSettings) -> float:
    return math.inf if settings.max_concurrency is None else float(settings.max_concurrency)


class _Minute:
    """What started in the last minute: a window that slides, so that no minute ever holds more than the limit.

    `limit` may change. Without one nothing is noted, so a first one counts from when it is set.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._used = 0
        self._starts: deque[_Start] = deque()

    def next_start(self, amount: int, now: float) -> float:
        """When `amount` more fits: now or later. What exceeds the whole limit goes alone, or it would never go."""
        if self.limit is None:
            return now
        self._forget_before(now - WINDOW)
        excess = self._used + min(amount, self.limit) - self.limit
        earliest = now
        for start in self._starts:
            if excess <= 0:
                break
            excess -= start.amount
            earliest = start.time + WINDOW
        return earliest

    def add(self, amount: int, now: float, override: LimitSettings) -> _Start:
        start = _Start(now, amount, override)
        if self.limit is not None:
            self._starts.append(start)
            self._used += amount
        return start

    def correct(self, start: _Start, amount: int) -> None:
        """Replace an estimate by what the provider counted."""
        if start in self._starts:
            self._used += amount - start.amount
            start.amount = amount

    def overrides(self) -> set[LimitSettings]:
        return {start.override for start in self._starts}

    def hand_over(self, override: LimitSettings, other: _Minute) -> None:
        """Let what calls of this override began count in another."""
        going = [start for start in self._starts if start.override == override]
        other._set_starts([*other._starts, *going])
        self._set_starts([start for start in self._starts if start.override != override])

    def _set_starts(self, starts: list[_Start]) -> None:
        self._starts = deque(sorted(starts, key=lambda start: start.time))
        self._used = sum(start.amount for start in starts)

    def holds(self, now: float) -> bool:
        """Whether anything still counts."""
        self._forget_before(now - WINDOW)
        return bool(self._starts)

    def _forget_before(self, time: float) -> None:
        while self._starts and self._starts[0].time <= time:
            self._used -= self._starts.popleft().amount
