"""What the standard variables of OpenTelemetry say about whether spans are sent, and where to."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec


def tracing_settings(environ: Mapping[str, str]) -> dict[str, tuple[str, str | bool]]:
    """By their dotted keys, the settings that the environment makes: the variable, and the value."""
    found: dict[str, tuple[str, str | bool]] = {}
    if (base := environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")) is not None:
        found["tracing.endpoint"] = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"{base.rstrip('/')}/v1/traces")
    if (whole := environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")) is not None:
        found["tracing.endpoint"] = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", whole)
    exporters = [name.strip().lower() for name in environ.get("OTEL_TRACES_EXPORTER", "").split(",") if name.strip()]
    if exporters:
        # No other exporter is there: to whoever names one, nothing is sent.
        found["tracing.enabled"] = ("OTEL_TRACES_EXPORTER", "otlp" in exporters)
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        found["tracing.enabled"] = ("OTEL_SDK_DISABLED", False)
    return found


def is_installed() -> bool:
    """Whether the extra `otel` is there."""
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False
