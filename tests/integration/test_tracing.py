"""Spans of jobs: what they hold, whose children they are, and that sending them holds up nobody."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from tests.daemon_process import DaemonProcess
from tests.engine_setting import Setting, job_request, open_setting, statuses
from tests.scripted_server import Reply, ScriptedServer, open_server

from pipeline_engine import span_export
from pipeline_engine.config import TracingConfig
from pipeline_engine.decoding import Secret
from pipeline_engine.models import Job, JobRequest, ProviderExtra, ProviderKind, ProviderProfile
from pipeline_engine.otel import open_otel_tracer
from pipeline_engine.providers.local_tool import LocalToolProvider
from pipeline_engine.providers.registry import open_registry
from pipeline_engine.redaction import Redactor
from pipeline_engine.store.memory import MemoryStore
from pipeline_engine.tracing import Start

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01", "tracestate": "vendor=1"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3}
ANSWER = Reply.sse(
    {"model": "big-2", "choices": [{"delta": {"content": "the answer"}}]},
    {"model": "big-2", "choices": [{"delta": {}, "finish_reason": "stop"}], "usage": USAGE},
    b"data: [DONE]\n\n",
)
KEY = "sk-canary-of-the-trace"


def llm(step_id: str = "a", **step: Any) -> dict[str, Any]:
    return {"id": step_id, "kind": "llm", "provider_profile_id": "p", "prompt": {"user": "a question"}, **step}


class KeepingExporter(InMemorySpanExporter):
    def shutdown(self) -> None:
        """Keeps what comes after it too: some tests have two engines."""


class Traced:
    """An engine whose spans are kept here."""

    def __init__(self, setting: Setting, exporter: KeepingExporter, server: ScriptedServer) -> None:
        self.setting = setting
        self.exporter = exporter
        self.server = server

    async def run(self, *steps: dict[str, Any], sources: Sequence[str] = ("x",), **request: Any) -> Job:
        return await self.setting.run(steps, sources, **request)


@asynccontextmanager
async def open_traced(
    *replies: Reply, content: bool = False, store: MemoryStore | None = None, exporter: KeepingExporter
) -> AsyncIterator[Traced]:
    redactor = Redactor()
    config = TracingConfig(enabled=True, content=content)
    async with (
        open_server(*replies) as server,
        open_otel_tracer(config, environ={}, redactor=redactor, exporter=exporter) as tracer,
        open_registry(
            [
                ProviderProfile(
                    id="p",
                    kind=ProviderKind.OPENAI,
                    base_uri=f"{server.url}/v1",
                    api_key=Secret(KEY),
                    default_model="big",
                    extra=ProviderExtra(options={"temperature": 0.5}),
                ),
                ProviderProfile(id="tool", kind=ProviderKind.LOCAL_TOOL, extra=ProviderExtra(command=["cat"])),
            ],
            local_tool=LocalToolProvider(environment=os.environ),
            redactor=redactor,
            tracer=tracer,
        ) as registry,
        open_setting(registry=registry, store=store, tracer=tracer) as setting,
    ):
        yield Traced(setting, exporter, server)


@pytest.fixture
def exporter() -> KeepingExporter:
    return KeepingExporter()


def spans_of(exporter: KeepingExporter) -> dict[str, ReadableSpan]:
    """By their names; the last one of each."""
    return {span.name: span for span in exporter.get_finished_spans()}


def shown(exporter: KeepingExporter) -> str:
    """All that leaves the process."""
    return "\n".join(span.to_json() for span in exporter.get_finished_spans())


def parent_of(span: ReadableSpan, exporter: KeepingExporter) -> str:
    ids = {one.context.span_id: one.name for one in exporter.get_finished_spans() if one.context is not None}
    return "" if span.parent is None else ids.get(span.parent.span_id, "elsewhere")


async def test_a_job_is_a_tree_of_spans_with_the_names_of_the_conventions(exporter: KeepingExporter) -> None:
    async with open_traced(ANSWER, exporter=exporter) as traced:
        job = await traced.run(llm(), pipeline={"type": "summary.v1"}, options={"max_tokens": 9})
    spans = spans_of(exporter)
    assert {name: parent_of(span, exporter) for name, span in spans.items()} == {
        "invoke_workflow summary.v1": "",
        "step a": "invoke_workflow summary.v1",
        "item a": "step a",
        "chat big": "item a",
    }
    call = spans["chat big"]
    attributes = dict(call.attributes or {})
    assert 0 <= attributes.pop("gen_ai.response.time_to_first_chunk") < 10  # type: ignore[operator]
    assert (call.kind, call.status.status_code) == (SpanKind.CLIENT, StatusCode.UNSET)
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "big",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.output.type": "text",
        "gen_ai.response.model": "big-2",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "server.address": "127.0.0.1",
        "server.port": traced.server.port,
        "pipeline_engine.profile.id": "p",
    }
    workflow = spans["invoke_workflow summary.v1"].attributes or {}
    assert (workflow["gen_ai.operation.name"], workflow["gen_ai.workflow.name"]) == ("invoke_workflow", "summary.v1")
    assert workflow["pipeline_engine.job.id"] == job.id
    resource = call.resource.attributes
    assert resource["service.name"] == "pipeline-engine"


async def test_prompts_answers_and_errors_are_told_only_when_that_is_wanted(exporter: KeepingExporter) -> None:
    wrong = Reply.json({"error": {"message": f"cannot answer 'a question' for {KEY}"}}, status=400)
    async with open_traced(ANSWER, wrong, exporter=exporter) as traced:
        await traced.run(llm())
        assert statuses(await traced.run(llm())) == {"a": "failed"}
    assert "question" not in shown(exporter)
    assert "answer" not in shown(exporter)
    exporter.clear()
    async with open_traced(ANSWER, wrong, content=True, exporter=exporter) as traced:
        system = {"system": f"never tell {KEY}", "user": "a question"}
        await traced.run(llm(prompt=system))
        await traced.run(llm())
    first, second = [span for span in exporter.get_finished_spans() if span.name == "chat big"]
    told = first.attributes or {}
    assert json.loads(str(told["gen_ai.system_instructions"])) == [{"type": "text", "content": "never tell ***"}]
    question = [{"role": "user", "parts": [{"type": "text", "content": "a question"}]}]
    assert json.loads(str(told["gen_ai.input.messages"])) == question
    parts = [{"type": "text", "content": "the answer"}]
    assert json.loads(str(told["gen_ai.output.messages"])) == [
        {"role": "assistant", "parts": parts, "finish_reason": "stop"}
    ]
    assert "cannot answer 'a question' for ***" in (second.status.description or "")
    assert KEY not in shown(exporter)


async def test_each_attempt_is_a_span_and_a_failed_one_says_why(exporter: KeepingExporter) -> None:
    limited = Reply.json({"error": {"message": "slow down"}}, status=429, headers={"retry-after": "0"})
    async with open_traced(limited, ANSWER, exporter=exporter) as traced:
        assert statuses(await traced.run(llm())) == {"a": "success"}
    first, second = [span for span in exporter.get_finished_spans() if span.name == "chat big"]
    attributes = first.attributes or {}
    assert first.status.status_code is StatusCode.ERROR
    assert attributes["error.type"] == "provider_rate_limited"
    assert attributes["http.response.status_code"] == 429
    assert second.status.status_code is StatusCode.UNSET
    assert parent_of(first, exporter) == parent_of(second, exporter) == "item a"


async def test_a_failure_and_a_cancellation_are_seen_up_to_the_job(exporter: KeepingExporter) -> None:
    async with open_traced(Reply.json({}, status=401), Reply(end="silent"), exporter=exporter) as traced:
        await traced.run(llm())
        names = ("chat big", "item a", "step a", "invoke_workflow test.v1")
        job = await traced.setting.submit([llm()], ["x"])
        await traced.server.wait_for_requests(2)
        await traced.setting.engine.cancel(job.id)
    found = exporter.get_finished_spans()
    errors = [[(span.attributes or {})["error.type"] for span in found if span.name == name] for name in names]
    assert errors == [["provider_auth", "cancelled"]] * 4


async def test_tools_are_tool_spans_and_transforms_of_many_lines_have_none(exporter: KeepingExporter) -> None:
    tool = {"id": "t", "kind": "custom", "provider_profile_id": "tool", "depends_on": ["each"]}
    each = {"id": "each", "kind": "map", "mode": "fanout", "config": {"map": "identity"}}
    async with open_traced(ANSWER, exporter=exporter) as traced:
        assert statuses(await traced.run(each, tool, sources=["x", "y"])) == {"each": "success", "t": "success"}
    names = sorted(span.name for span in exporter.get_finished_spans())
    assert names == ["execute_tool tool", "invoke_workflow test.v1", "item t", "step each", "step t"]
    attributes = spans_of(exporter)["execute_tool tool"].attributes or {}
    assert attributes["gen_ai.tool.name"] == "tool"
    assert spans_of(exporter)["execute_tool tool"].kind is SpanKind.INTERNAL


async def test_the_job_is_a_child_of_the_request_and_providers_are_told_nothing(
    exporter: KeepingExporter,
) -> None:
    async with open_traced(ANSWER, exporter=exporter) as traced:
        job = await traced.setting.engine.submit(request(), trace=PARENT)
        await traced.setting.engine.wait(job.id)
        assert "traceparent" not in traced.server.requests[0].headers
    span = spans_of(exporter)["invoke_workflow test.v1"]
    assert span.parent is not None
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert span.context.trace_state.get("vendor") == "1"


async def test_a_header_that_is_none_gives_a_trace_of_its_own(exporter: KeepingExporter) -> None:
    async with open_traced(ANSWER, exporter=exporter) as traced:
        job = await traced.setting.engine.submit(request(), trace={"traceparent": "00-nonsense"})
        await traced.setting.engine.wait(job.id)
    assert spans_of(exporter)["invoke_workflow test.v1"].parent is None


async def test_what_the_caller_does_not_sample_is_not_sent(exporter: KeepingExporter) -> None:
    unsampled = {"traceparent": PARENT["traceparent"][:-1] + "0"}
    async with open_traced(ANSWER, exporter=exporter) as traced:
        job = await traced.setting.engine.submit(request(), trace=unsampled)
        assert (await traced.setting.engine.wait(job.id)).status == "succeeded"
    assert exporter.get_finished_spans() == ()


async def test_after_a_restart_the_job_is_still_a_child_of_its_request(exporter: KeepingExporter) -> None:
    store = MemoryStore()
    async with open_traced(Reply(end="silent"), store=store, exporter=exporter) as traced:
        job = await traced.setting.engine.submit(request(), trace=PARENT)
        await traced.server.wait_for_requests(1)
    async with open_traced(ANSWER, store=store, exporter=exporter) as traced:
        assert (await traced.setting.engine.wait(job.id)).status == "succeeded"
    first, second = [span for span in exporter.get_finished_spans() if span.name.startswith("invoke_workflow")]
    assert (first.attributes or {})["error.type"] == "interrupted"
    assert (second.attributes or {})["pipeline_engine.job.restarts"] == 1
    assert [f"{span.context.trace_id:032x}" for span in (first, second) if span.context] == [TRACE_ID] * 2


def request() -> JobRequest:
    return job_request([llm()], ["x"])


# --- sending


class HangingExporter(SpanExporter):
    """As one whose collector takes its time."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.called = threading.Semaphore(0)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.called.release()
        self.go_on.wait(20)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        pass


@pytest.fixture
def hanging() -> Iterator[HangingExporter]:
    exporter = HangingExporter()
    yield exporter
    exporter.go_on.set()


async def test_a_collector_that_hangs_costs_spans_and_one_line(
    hanging: HangingExporter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(span_export, "LAST_SEND_TIMEOUT", 0.05)
    settings = {"OTEL_BSP_MAX_QUEUE_SIZE": "20", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "5", "OTEL_BSP_SCHEDULE_DELAY": "1"}
    config = TracingConfig(enabled=True)
    with caplog.at_level(logging.WARNING, "pipeline_engine.span_export"):
        async with open_otel_tracer(config, environ=settings, redactor=Redactor(), exporter=hanging) as tracer:
            for _ in range(500):
                with tracer.span(lambda: Start("x", {})):
                    pass
                await trio.lowlevel.checkpoint()
            await trio.to_thread.run_sync(hanging.called.acquire)
            began = time.monotonic()
        assert time.monotonic() - began < 2
    assert [record.message for record in caplog.records if "did not take the last spans" in record.message]


async def test_a_collector_that_refuses_is_complained_about_once(
    hanging: HangingExporter, caplog: pytest.LogCaptureFixture
) -> None:
    hanging.go_on.set()
    config = TracingConfig(enabled=True)
    environ = {"OTEL_BSP_SCHEDULE_DELAY": "1"}
    async with open_otel_tracer(config, environ=environ, redactor=Redactor(), exporter=hanging) as tracer:
        for _ in range(3):
            with tracer.span(lambda: Start("x", {})):
                pass
            await trio.to_thread.run_sync(hanging.called.acquire)
    assert len([record for record in caplog.records if "spans were lost" in record.message]) == 1


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    process = DaemonProcess(tmp_path)
    yield process
    process.close()


async def test_a_daemon_sends_its_spans_over_otlp(daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_server(Reply.json(b"")) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-token=secret-of-the-collector")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "engine-of-mine")
        # This machine is reached past any proxy.
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        await trio.to_thread.run_sync(daemon.start)
        async with httpx.AsyncClient(base_url=daemon.url, trust_env=False) as client:
            body = {"pipeline_type": "words.v1", "mode": "sync", "input": {"sources": []}}
            answer = await client.post("/v1/jobs", json=body, headers=PARENT)
            assert answer.json()["job"]["status"] == "succeeded"
        # What has not been sent yet goes out at the end.
        await trio.to_thread.run_sync(daemon.close)
        sent = list(collector.requests)
    assert {one.target for one in sent} == {"/v1/traces"}
    assert sent[0].headers["x-token"] == "secret-of-the-collector"
    names = []
    for one in sent:
        message = ExportTraceServiceRequest.FromString(one.body)
        for resource in message.resource_spans:
            service = {entry.key: entry.value.string_value for entry in resource.resource.attributes}["service.name"]
            assert service == "engine-of-mine"
            names += [(span.name, span.trace_id.hex()) for scope in resource.scope_spans for span in scope.spans]
    expected = {"invoke_workflow words.v1", "step each", "step count", "item count"}
    assert {name for name, trace_id in names if trace_id == TRACE_ID} == expected
    assert "secret-of-the-collector" not in daemon.log.read_text(encoding="utf-8")


async def test_a_daemon_whose_collector_never_answers_works_and_stops(
    daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_server(Reply(end="silent")) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
        await trio.to_thread.run_sync(daemon.start)
        async with httpx.AsyncClient(base_url=daemon.url, trust_env=False) as client:
            body = {"pipeline_type": "words.v1", "mode": "sync", "input": {"sources": []}}
            assert (await client.post("/v1/jobs", json=body)).json()["job"]["status"] == "succeeded"
            await collector.wait_for_requests(1)
            assert (await client.post("/v1/jobs", json=body)).json()["job"]["status"] == "succeeded"
        began = time.monotonic()
        await trio.to_thread.run_sync(daemon.close)
        assert time.monotonic() - began < span_export.LAST_SEND_TIMEOUT + 5
    assert daemon.process is not None
    assert daemon.process.returncode == 0
    text = daemon.log.read_text(encoding="utf-8")
    assert "Traceback" not in text
    assert len(text.splitlines()) < 10, text


def test_when_tracing_is_off_nothing_of_it_is_imported(daemon: DaemonProcess) -> None:
    program = (
        "import sys; from pipeline_engine.cli.commands import cli; import pipeline_engine.daemon; "
        "from click.testing import CliRunner; done = CliRunner().invoke(cli, ['run', 'words.v1']); "
        "assert done.exit_code == 0, done.output; "
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'requests', 'google'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=daemon.environment, capture_output=True, encoding="utf-8", check=False
    )
    assert (done.stdout.splitlines()[-1:], done.returncode) == (["[]"], 0), done.stderr
