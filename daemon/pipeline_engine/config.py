"""The daemon's configuration: one frozen value with all settings in force."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from pipeline_engine.decoding import Secret
from pipeline_engine.errors import InvalidRequestError, Problem
from pipeline_engine.listen_addresses import Address, TcpAddress
from pipeline_engine.models import (
    FrozenWire,
    NonNegativeSeconds,
    PipelineDef,
    PositiveInt,
    PositiveSeconds,
    ProviderProfile,
)

NonNegativeInt = Annotated[int, Meta(ge=0)]
Days = Annotated[float, Meta(ge=0, le=999_999_999)]  # a timedelta holds no more

_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(\[[0-9A-Fa-f:.]+\]|[^\s\[\]/?#@:*]+)(:[0-9]+)?")
_LEFT_OUT = {"http": ":80", "https": ":443"}  # the ports that a browser does not write


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class LogFormat(StrEnum):
    CONSOLE = "console"
    JSON = "json"
    JOURNAL = "journal"


class Durability(StrEnum):
    """What a commit survives: `normal` a crash of the daemon, `full` one of the machine too."""

    NORMAL = "normal"
    FULL = "full"


class HttpConfig(FrozenWire, frozen=True, kw_only=True):
    addr: str | None = None
    allowed_hosts: list[str] = msgspec.field(default_factory=list)
    allowed_origins: list[str] = msgspec.field(default_factory=list)
    heartbeat_s: PositiveSeconds = 15.0
    max_connections: PositiveInt = 4096


class LimitsConfig(FrozenWire, frozen=True, kw_only=True):
    max_body_bytes: PositiveInt = 32 * 1024 * 1024
    max_running_jobs: PositiveInt = 64
    max_queued_jobs: PositiveInt = 10_000
    max_store_bytes: PositiveInt | None = None
    shutdown_grace_s: NonNegativeSeconds = 20.0
    follower_stall_s: PositiveSeconds = 300.0
    max_restarts: NonNegativeInt = 20
    template_fuel: PositiveInt = 20_000_000
    max_items: PositiveInt = 10_000


class RetentionConfig(FrozenWire, frozen=True, kw_only=True):
    max_age_days: Days = 30.0
    max_jobs: NonNegativeInt = 100_000
    max_bytes: PositiveInt | None = None
    chunk_age_days: Days = 7.0


class StoreConfig(FrozenWire, frozen=True, kw_only=True):
    durability: Durability = Durability.NORMAL
    retention: RetentionConfig = RetentionConfig()


class TracingConfig(FrozenWire, frozen=True, kw_only=True):
    """`endpoint` is the address that spans are posted to; `content` puts prompts and answers into them."""

    enabled: bool = False
    endpoint: str = "http://localhost:4318/v1/traces"
    content: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings in force.

    `providers` are the profiles by id, those built in among them; `pipelines` the demo pipelines; `proxies` has the
    keys http_proxy, https_proxy, all_proxy and no_proxy, as far as they are set. `origins` tells where each setting
    (`http.addr`, `providers.ID`, `handlers.NAME`) comes from: `FILE:LINE`, `environment NAME`, `flag` or `default`.
    `files` are the configuration files that were read, `missing_files` those that need not be there and were not;
    `private_files` is what holds keys besides them; `warnings` are for the log.
    """

    log_level: LogLevel
    log_format: LogFormat
    data_dir: Path
    pipelines_dirs: tuple[Path, ...]
    addresses: tuple[Address, ...]
    api_key: Secret | None
    http: HttpConfig
    limits: LimitsConfig
    store: StoreConfig
    tracing: TracingConfig
    providers: dict[str, ProviderProfile]
    handlers: dict[str, str]
    pipelines: tuple[PipelineDef, ...]
    proxies: dict[str, str]
    origins: dict[str, str]
    files: tuple[Path, ...]
    missing_files: tuple[Path, ...]
    private_files: tuple[Path, ...]
    warnings: tuple[str, ...]

    def settings(self) -> dict[str, object]:
        """Each plain setting by its dotted key, without secrets and profiles: JSON values, for people to read."""
        shown: dict[str, object] = {
            "log_level": self.log_level.value,
            "log_format": self.log_format.value,
            "data_dir": str(self.data_dir),
            "pipelines_dir": [str(directory) for directory in self.pipelines_dirs],
        }
        tables = {"http": self.http, "limits": self.limits, "store": self.store, "tracing": self.tracing}
        for name, table in tables.items():
            shown |= {f"{name}.{key}": getattr(table, key) for key in table.__struct_fields__}
        del shown["store.retention"]
        shown |= {
            f"store.retention.{key}": getattr(self.store.retention, key) for key in RetentionConfig.__struct_fields__
        }
        return shown | {"http.addr": [str(address) for address in self.addresses]}


def parse_log_level(text: str) -> LogLevel:
    """The level of that name, in any case; `warn` is `warning`. Raises ValueError."""
    name = text.strip().lower()
    try:
        return LogLevel("warning" if name == "warn" else name)
    except ValueError:
        raise ValueError(f"{text!r} is not one of {', '.join(LogLevel)}") from None


def check_origin(text: str) -> None:
    """Raises ValueError for what no browser sends as an `Origin`, and so would never match, and for `null` and `*`."""
    if not _ORIGIN.fullmatch(text) or text.lower().endswith(_LEFT_OUT.get(text.lower().partition(":")[0], "/")):
        raise ValueError(f"{text!r} is not an origin: scheme://host or scheme://host:port, without the default port")


def check_collector(text: str) -> None:
    """Raises ValueError for what spans cannot be posted to, and for an address that may hold a secret: it is shown."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an address that begins with http:// or https://")
    if "@" in parts.netloc or parts.query:
        raise ValueError("must not hold a password or a query; use the variable OTEL_EXPORTER_OTLP_HEADERS")


def check_exposure(config: Config, *, passed: Iterable[Address] = ()) -> None:
    """Raises InvalidRequestError when other machines could reach the daemon without a key.

    `passed` are the addresses of sockets that the service manager opened.
    """
    if config.api_key is not None:
        return
    problems = [
        Problem(
            "http.addr", f"{address} can be reached from other machines: set PIPELINE_ENGINE_API_KEY or _API_KEY_FILE"
        )
        for address in (*config.addresses, *passed)
        if isinstance(address, TcpAddress) and not address.is_loopback
    ]
    if problems:
        raise InvalidRequestError(problems, source=config.origins["http.addr"])
