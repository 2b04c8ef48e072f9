"""Reading bodies and queries strictly."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest
import trio

from pipeline_engine.api.requests import LARGE_BODY, decode_body, read_json, read_query
from pipeline_engine.errors import InvalidRequestError
from pipeline_engine.models import JobRequest, JobStatus


class Query(msgspec.Struct, frozen=True, kw_only=True):
    number: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)] = 0
    seconds: float = 0.0
    flag: bool = False
    status: JobStatus | None = None
    text: str | None = None
    words: list[Literal["a", "b"]] = []


def test_a_query_becomes_typed() -> None:
    given = [
        ("number", "12"),
        ("seconds", "1.5"),
        ("flag", "true"),
        ("status", "failed"),
        ("words", "a"),
        ("words", "b"),
    ]
    query = read_query(given, Query)
    assert query == Query(number=12, seconds=1.5, flag=True, status=JobStatus.FAILED, words=["a", "b"])


def test_an_empty_parameter_is_not_given() -> None:
    assert read_query([("number", ""), ("status", ""), ("text", ""), ("words", ""), ("flag", "")], Query) == Query()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("number", "-1"), ("number", "+1"), ("number", "1.0"), ("number", " 1"), ("number", "1e3"), ("number", "٣"),
        ("number", "9007199254740992"), ("number", "9" * 5000), ("number", "0x10"), ("number", "nan"),
        ("seconds", "inf"), ("seconds", "1e9"), ("seconds", "-0.5"), ("seconds", "."),
        ("flag", "yes"), ("flag", "TRUE"), ("status", "done"), ("words", "c"), ("bogus", "1"),
    ],
)  # fmt: skip
def test_a_bad_parameter_is_named(name: str, text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_query([(name, text)], Query)
    assert caught.value.details["path"].startswith(name)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_query([("number", "1"), ("number", "2"), ("flag", "maybe"), ("bogus", "1")], Query)
    assert {problem.path for problem in caught.value.problems} == {"number", "flag", "bogus"}


async def parsed(data: bytes, *, optional: bool = False) -> object:
    return await read_json(data, optional=optional, limiter=trio.CapacityLimiter(1))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"{not json", "line 1"),
        (b"\xff\xfe", "UTF-8 (byte 0)"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b"[" * 100_000, "nested"),
        (b"{}{}", "line 1"),
    ],
)
async def test_what_is_not_json_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words.replace("(", r"\(").replace(")", r"\)")):
        await parsed(data)


async def test_an_optional_body_may_be_missing() -> None:
    assert await parsed(b"", optional=True) == {}
    assert await parsed(b"null", optional=True) == {}
    assert await parsed(b'{"reason": "x"}', optional=True) == {"reason": "x"}


async def test_a_large_body_is_read_all_the_same() -> None:
    text = "é" * LARGE_BODY
    assert await parsed(f'"{text}"'.encode()) == text


def test_null_and_empty_texts_mean_absent_in_a_body() -> None:
    body = {"pipeline_type": "x", "mode": "", "parent_job_id": None, "from_step_id": "", "input": {"sources": None}}
    assert decode_body(body, JobRequest) == JobRequest(pipeline_type="x")


def test_a_body_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="expected an object"):
        decode_body([], JobRequest)
