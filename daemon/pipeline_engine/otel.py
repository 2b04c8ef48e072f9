"""Spans as OpenTelemetry has them. Needs the extra `otel`, and is imported only when tracing is on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import Token
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import requests
import trio
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_TRACES_HEADERS
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.re import parse_env_headers

from pipeline_engine import __version__
from pipeline_engine.config import TracingConfig
from pipeline_engine.decoding import Secret
from pipeline_engine.errors import PipelineEngineError
from pipeline_engine.providers.addresses import is_loopback
from pipeline_engine.redaction import Redactor
from pipeline_engine.span_export import SpanQueue, read_queue_settings
from pipeline_engine.tracing import Attributes, Span, Start, TraceHeaders, Tracer

SERVICE = "pipeline-engine"


class OtelSpan(Span):
    """A span that is recorded, unless the sampler left it out. Its texts are without secrets.

    What an error says may repeat a prompt or an answer, so it is content too; its code is none.
    """

    __slots__ = ("_redactor", "_span", "_token", "_wants_content")

    def __init__(self, span: trace.Span, *, redactor: Redactor, wants_content: bool) -> None:
        self._span = span
        self._redactor = redactor
        self._wants_content = wants_content
        self._token: Token[contexts.Context] | None = None

    def __enter__(self) -> Self:
        # The context variable of OpenTelemetry: trio hands it on to tasks and threads, and so to handlers of users.
        self._token = contexts.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._token is not None
        contexts.detach(self._token)
        if exc is not None:
            self._fail_with(exc)
        self._span.end()

    def add(self, describe: Callable[[], Attributes]) -> None:
        if self._span.is_recording():
            self._span.set_attributes(clean(describe(), self._redactor))

    def fail(self, error_type: str, message: str) -> None:
        if self._span.is_recording():
            self._span.set_attribute("error.type", error_type)
            words = self._redactor.redact(message) if self._wants_content else None
            self._span.set_status(trace.StatusCode.ERROR, words)

    def _fail_with(self, exc: BaseException) -> None:
        while isinstance(exc, BaseExceptionGroup):
            exc = exc.exceptions[0]
        if isinstance(exc, PipelineEngineError):
            if isinstance(status := exc.details.get("status"), int):
                self.add(lambda: {"http.response.status_code": status})
            self.fail(exc.code, exc.message)
        elif isinstance(exc, trio.Cancelled):
            self.fail("cancelled", "")
        else:
            # What a bug says may be anything; the log has it.
            self.fail(type(exc).__qualname__, "internal error")


class OtelTracer(Tracer):
    """Opens spans of a tracer of OpenTelemetry."""

    def __init__(self, tracer: trace.Tracer, *, redactor: Redactor, wants_content: bool = False) -> None:
        self.wants_content = wants_content
        self._tracer = tracer
        self._redactor = redactor
        self._propagator = TraceContextTextMapPropagator()

    def span(self, describe: Callable[[], Start], *, parent: TraceHeaders | None = None) -> Span:
        start = describe()
        # Extracted into an empty context: what is open around it has nothing to do with the request.
        context = None if parent is None else self._propagator.extract(parent, contexts.Context())
        span = self._tracer.start_span(
            self._redactor.redact(start.name),
            context,
            trace.SpanKind.CLIENT if start.is_client else trace.SpanKind.INTERNAL,
            clean(start.attributes, self._redactor),
        )
        return OtelSpan(span, redactor=self._redactor, wants_content=self.wants_content)


def clean(attributes: Attributes, redactor: Redactor) -> Attributes:
    """The attributes without secrets."""

    def cleaned(value: object) -> object:
        if isinstance(value, str):
            return redactor.redact(value)
        return [cleaned(part) for part in value] if isinstance(value, list | tuple) else value

    return {name: cleaned(value) for name, value in attributes.items()}  # type: ignore[misc]  # of the type it had


@asynccontextmanager
async def open_otel_tracer(
    config: TracingConfig,
    *,
    environ: Mapping[str, str],
    redactor: Redactor,
    exporter: SpanExporter | None = None,
) -> AsyncIterator[OtelTracer]:
    """A tracer whose spans are sent while the block runs, to the configured address or to the given exporter.

    `environ` has the standard variables of OpenTelemetry, which the libraries themselves read from the process.
    """
    for name in (OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_TRACES_HEADERS):
        redactor.add(*(Secret(value) for value in parse_env_headers(environ.get(name, ""), liberal=True).values()))
    provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    queue = SpanQueue(
        exporter or OTLPSpanExporter(endpoint=config.endpoint, session=_session(config.endpoint)),
        address=config.endpoint,
        settings=read_queue_settings(environ),
    )
    provider.add_span_processor(queue)
    tracer = provider.get_tracer(SERVICE, __version__)
    async with queue.exporting():
        yield OtelTracer(tracer, redactor=redactor, wants_content=config.content)


def _resource() -> Resource:
    own = Resource({SERVICE_NAME: SERVICE, SERVICE_VERSION: __version__})
    # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before what we say.
    return Resource.create().merge(own).merge(OTELResourceDetector().detect())


def _session(endpoint: str) -> requests.Session:
    session = requests.Session()
    # This machine is always reached directly, whatever proxies the environment names.
    session.trust_env = not is_loopback(urlsplit(endpoint).hostname or "")
    return session
