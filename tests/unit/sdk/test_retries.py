from __future__ import annotations

from datetime import UTC, datetime

import httpx
import pytest

from pipeline_engine_sdk import ConnectionFailed, RateLimited
from pipeline_engine_sdk._calls import delete_job, get_job
from pipeline_engine_sdk._retries import LONGEST_PAUSE, Attempts, Patience, parse_retry_after
from pipeline_engine_sdk._settings import find_target

TARGET = find_target("http://127.0.0.1:9", None, None, {})
NOW = datetime(2026, 1, 1, tzinfo=UTC)
FULL = b'{"error": {"code": "too_many_requests", "message": "full", "details": {}}}'


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("Thu, 01 Jan 2026 00:00:10 GMT", 10.0),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0),
        ("soon", None),
        ("-1", None),
        ("inf", None),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    assert parse_retry_after({"retry-after": text}, now=NOW) == seconds


def test_pauses_grow_and_are_bounded() -> None:
    patience = Patience(max_retries=None, give_up_after_s=None)
    pauses = [patience.pause() for _ in range(2000)]
    assert pauses[0] is not None
    assert 0.05 <= pauses[0] <= 0.1
    assert all(pause is not None and pause <= LONGEST_PAUSE for pause in pauses)


def test_it_gives_up_after_so_many_failures_in_a_row() -> None:
    patience = Patience(max_retries=2, give_up_after_s=None)
    assert patience.pause() is not None
    patience.progressed()
    assert [patience.pause() is None for _ in range(3)] == [False, False, True]


def test_it_gives_up_when_it_has_failed_for_so_long() -> None:
    clock = Clock()
    patience = Patience(max_retries=None, give_up_after_s=10, clock=clock)
    clock.now += 3600.0  # nothing has failed yet
    assert patience.pause() is not None
    clock.now += 9.99
    assert patience.pause() == pytest.approx(0.01)
    patience.heard()
    clock.now += 3600.0
    assert patience.pause() is not None
    clock.now += 10.0
    assert patience.pause() is None


def test_who_asks_for_a_long_wait_is_believed_at_once() -> None:
    patience = Patience(max_retries=5, give_up_after_s=None)
    assert patience.pause(7.0) == 7.0
    assert patience.pause(3600.0) is None


def attempts(call: object, clock: Clock | None = None, give_up_after_s: float | None = None) -> Attempts:
    clock = clock or Clock()
    patience = Patience(max_retries=2, give_up_after_s=give_up_after_s, clock=clock)
    return Attempts(call, TARGET, patience, clock=clock)  # type: ignore[arg-type]


def test_what_may_have_been_done_is_not_done_again_unless_that_is_safe() -> None:
    assert attempts(get_job("j")).after_failure(httpx.ReadError("cut")) > 0
    assert attempts(delete_job("j")).after_failure(httpx.ConnectError("refused")) > 0
    with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:9"):
        attempts(delete_job("j")).after_failure(httpx.ReadError("cut"))


def test_a_refusal_that_passes_is_waited_for_and_its_error_is_raised_in_the_end() -> None:
    tries = attempts(get_job("j"))
    assert tries.after_answer(429, {"retry-after": "2"}, FULL) == 2.0
    tries.after_answer(503, {}, b"<html>")
    with pytest.raises(RateLimited, match="full") as caught:
        tries.after_answer(429, {"retry-after": "2"}, FULL)
    assert (caught.value.retry_after, caught.value.status, caught.value.job_id) == (2.0, 429, "j")


def test_a_connection_that_held_for_long_counts_as_contact() -> None:
    clock = Clock()
    tries = attempts(get_job("j"), clock, give_up_after_s=10)
    tries.begin()
    clock.now += 600
    assert tries.after_failure(httpx.ReadError("cut")) > 0
