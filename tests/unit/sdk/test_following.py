from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from pipeline_engine_sdk import ConnectionFailed, DeadlineExceeded, Event, Gone, Job, NotFound, ProtocolError
from pipeline_engine_sdk._calls import submit_and_stream
from pipeline_engine_sdk._following import Following, Waiting
from pipeline_engine_sdk._models import EventPage
from pipeline_engine_sdk._retries import Patience
from pipeline_engine_sdk._settings import find_target

TARGET = find_target("http://127.0.0.1:9", None, None, {})


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def following(**more: Any) -> Following:
    patience = Patience(max_retries=3, give_up_after_s=None)
    return Following(target=TARGET, patience=patience, **{"job_id": "job_1", **more})


def line(seq: int | None, event: str = "provider_chunk", **data: Any) -> bytes:
    numbered = {} if seq is None else {"seq": seq}
    return json.dumps({**numbered, "event": event, "job_id": "job_1", "ts": "t", "data": data}).encode() + b"\n"


def job(status: str, last_seq: int) -> Job:
    return Job(id="job_1", pipeline_type="t", status=status, created_at="", updated_at="", last_seq=last_seq)


def test_events_come_once_and_heartbeats_not_at_all() -> None:
    stream = following()
    stream.opened()
    assert [event.seq for event in stream.feed(line(1) + line(None, "heartbeat") + line(2) + line(1)[:9])] == [1, 2]
    stream.broke(httpx.ReadError("cut"))
    assert stream.next_call().params == [("after_seq", "2")]
    stream.opened()
    assert [event.seq for event in stream.feed(line(2) + line(3) + line(4, "stream_finished") + line(5))] == [3, 4]
    assert stream.finished


def test_a_submission_is_repeated_with_its_key_until_the_job_is_known() -> None:
    submit = submit_and_stream({"pipeline_type": "t"}, key=None)
    stream = following(job_id=None, submit=submit)
    assert stream.next_call() is submit
    stream.broke(httpx.ReadError("cut"))
    assert stream.next_call() is submit
    stream.opened()
    stream.feed(line(1))
    assert (stream.next_call().method, stream.job_id) == ("GET", "job_1")


def test_an_empty_stream_ends_with_a_finished_job_only() -> None:
    stream = following(after_seq=7)
    stream.opened()
    assert stream.asks_for_job()
    assert stream.ended(job("running", 7)) > 0
    assert stream.ended(job("succeeded", 8)) > 0
    assert not stream.finished
    assert stream.ended(job("succeeded", 7)) == 0
    assert stream.finished


def test_a_stream_that_ended_after_events_is_taken_up_without_a_question() -> None:
    stream = following()
    stream.opened()
    stream.feed(line(1))
    assert not stream.asks_for_job()
    assert stream.ended(None) > 0


def test_it_gives_up_and_names_the_address() -> None:
    stream = following()
    for _ in range(3):
        assert stream.broke(httpx.ConnectError("refused")) > 0
    with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:9: refused"):
        stream.broke(httpx.ConnectError("refused"))


@pytest.mark.parametrize(("status", "class_"), [(404, NotFound), (410, Gone), (301, ProtocolError)])
def test_what_will_not_change_is_raised(status: int, class_: type[Exception]) -> None:
    stream = following()
    with pytest.raises(class_):
        stream.refused(stream.next_call(), status, {}, b"")


def test_a_daemon_that_is_busy_is_asked_again() -> None:
    stream = following()
    assert stream.refused(stream.next_call(), 429, {"retry-after": "4"}, b"") == 4.0


def test_an_error_in_the_stream_is_raised_when_it_comes_back() -> None:
    stream = following()
    stream.opened()
    assert stream.feed(line(None, "error", code="unavailable", message="later")) == []
    assert stream.ended(None) > 0
    stream.opened()
    with pytest.raises(Exception, match="later"):
        stream.feed(line(None, "error", code="unavailable", message="later"))


def test_pruned_events_are_told_at_once() -> None:
    with pytest.raises(Gone):
        following().feed(line(None, "error", code="gone", message="pruned"))


@pytest.mark.parametrize("data", [line(3), b"nonsense\n", b'{"event": "x", "seq": "1"}\n', b"\xff\n"])
def test_what_no_daemon_sends_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        following().feed(data)


def test_waiting_asks_for_pages_and_keeps_its_deadline() -> None:
    clock = Clock()
    waiting = Waiting("job_1", timeout_s=30, clock=clock)
    assert not waiting.is_over(job("running", 5))
    assert waiting.next_page().params == [("after_seq", "5"), ("wait_s", "20.000")]
    clock.now += 25
    assert waiting.next_page().params[1] == ("wait_s", "5.000")
    clock.now += 5
    with pytest.raises(DeadlineExceeded, match="30 s"):
        waiting.next_page()


def test_waiting_asks_for_the_job_when_it_is_over_or_silent() -> None:
    waiting = Waiting("job_1", timeout_s=None)
    one = Event(seq=6, event="provider_chunk", job_id="job_1", ts="", data={})
    last = Event(seq=7, event="stream_finished", job_id="job_1", ts="", data={})
    assert not waiting.must_ask(EventPage(events=[one], last_seq=6))
    assert waiting.next_page().params[0] == ("after_seq", "6")
    assert waiting.must_ask(EventPage(events=[], last_seq=6))
    assert waiting.must_ask(EventPage(events=[last], last_seq=7))
    assert waiting.is_over(job("failed", 7))
