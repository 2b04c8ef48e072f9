"""What the framework's side makes of wrong addresses, faults of ours, and a daemon that starts. Virtual time."""

from __future__ import annotations

import logging

import pytest
from tests.api_setting import body_of, configuration, open_api
from tests.engine_setting import llm
from trio.testing import MockClock

from pipeline_engine.api.routes import ROUTES


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/nothing", 404, None),
        ("GET", "/v1/jobs/", 404, None),
        ("GET", "/v1//jobs", 404, None),
        ("GET", "/v1/jobs/a/b/c", 404, None),
        ("PATCH", "/v1/jobs", 405, "GET, HEAD, POST"),
        ("OPTIONS", "/v1/jobs", 405, "GET, HEAD, POST"),
        ("PUT", "/health", 405, "GET, HEAD"),
        ("POST", "/v1/jobs/x/stream", 405, "GET"),
        ("GET", "/v1/config/engine", 405, "POST"),
    ],
)
async def test_wrong_addresses_are_told_as_json(
    autojump_clock: MockClock, method: str, path: str, status: int, allow: str | None
) -> None:
    async with open_api() as api:
        answer = await api.ask(method, path)
        assert (answer.status, answer.headers.get("allow")) == (status, allow)
        assert answer.headers["content-type"] == "application/json"
        assert answer.error["code"] == ("not_found" if status == 404 else "method_not_allowed")


async def test_a_stream_has_no_head(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        answer = await api.ask("HEAD", "/v1/jobs/x/stream")
        assert (answer.status, answer.headers["allow"]) == (405, "GET")


async def test_a_fault_of_ours_tells_nothing_and_is_logged_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_api() as api:
        monkeypatch.setattr(type(api.setting.engine), "get_job", None)
        with caplog.at_level(logging.ERROR):
            answer = await api.ask("GET", "/v1/jobs/x")
        assert (answer.status, answer.error) == (500, {"code": "internal", "message": "internal error", "details": {}})
        [record] = caplog.records
        assert record.exc_info is not None


async def test_a_body_that_is_too_large_is_refused(autojump_clock: MockClock) -> None:
    async with open_api(config=configuration(limits__max_body_bytes=1000)) as api:
        answer = await api.ask("POST", "/v1/jobs", body_of([llm("a")], ["x" * 2000]))
        assert (answer.status, answer.error["code"]) == (413, "payload_too_large")


async def test_while_the_engine_starts_only_health_answers(autojump_clock: MockClock) -> None:
    async with open_api(starting=True) as api:
        assert (await api.ask("GET", "/health")).status == 200
        assert (await api.ask("GET", "/openapi.json")).status == 200
        for route in ROUTES:
            if route.needs_engine:
                answer = await api.ask(route.method, route.path.replace("{", "").replace("}", ""))
                assert (answer.status, answer.error["code"]) == (503, "unavailable"), route.path


async def test_calls_without_parameters_refuse_all(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        answer = await api.ask("GET", "/v1/config/pipelines?limit=3")
        assert (answer.status, answer.error["details"]["path"]) == (400, "limit")


async def test_each_call_that_needs_a_body_says_so(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        for route in ROUTES:
            if route.body is not None and not route.body_optional:
                answer = await api.ask(route.method, route.path.replace("{", "").replace("}", ""))
                assert (answer.status, "empty" in answer.error["message"]) == (400, True), route.path
