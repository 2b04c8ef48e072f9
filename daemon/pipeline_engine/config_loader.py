"""Reading the configuration from files, the environment and flags, and remembering where each setting came from."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pipeline_engine.config import (
    Config,
    HttpConfig,
    LimitsConfig,
    LogFormat,
    LogLevel,
    RetentionConfig,
    StoreConfig,
    TracingConfig,
    check_collector,
    check_origin,
    parse_log_level,
)
from pipeline_engine.configured_profiles import FileProfile, KeyFileError, read_key_file, read_profile
from pipeline_engine.decoding import Secret, try_decode
from pipeline_engine.demo import VARIABLES as DEMO_VARIABLES
from pipeline_engine.demo import demo_pipelines, environment_profiles, ollama_host
from pipeline_engine.documents import Document, parse_document
from pipeline_engine.errors import InvalidRequestError, Problem
from pipeline_engine.listen_addresses import MAX_SOCKET_PATH, Address, UnixAddress, parse_addresses
from pipeline_engine.models import FrozenWire, ProviderProfile
from pipeline_engine.otel_variables import is_installed, tracing_settings
from pipeline_engine.providers.builtin import find_builtin_profile
from pipeline_engine.providers.targets import BUILT_IN_PROFILES

SYSTEM_FILE = Path("/etc/pipeline-engine/config.toml")
DEFAULT_ADDRESS = "127.0.0.1:8085"

Table = TypeVar("Table", bound=FrozenWire)

_ENVIRONMENT = {
    "PIPELINE_ENGINE_ADDR": "http.addr",
    "PIPELINE_ENGINE_LOG_LEVEL": "log_level",
    "PIPELINE_ENGINE_LOG_FORMAT": "log_format",
    "PIPELINE_ENGINE_DATA_DIR": "data_dir",
    "PIPELINE_ENGINE_PIPELINES_DIR": "pipelines_dir",
}
_OTHER_VARIABLES = frozenset({
    "PIPELINE_ENGINE_CONFIG", "PIPELINE_ENGINE_API_KEY", "PIPELINE_ENGINE_API_KEY_FILE", "PIPELINE_ENGINE_URL",
    *DEMO_VARIABLES,
})  # fmt: skip
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_HANDLER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class _Layer(FrozenWire, frozen=True, kw_only=True):
    """What a file, the environment or the flags may set."""

    log_level: str | None = None
    log_format: LogFormat | None = None
    data_dir: str | None = None
    pipelines_dir: str | None = None
    http: HttpConfig = HttpConfig()
    limits: LimitsConfig = LimitsConfig()
    store: StoreConfig = StoreConfig()
    tracing: TracingConfig = TracingConfig()
    providers: list[FileProfile] = msgspec.field(default_factory=list)
    handlers: dict[str, str] = msgspec.field(default_factory=dict)


_TABLES: dict[str, type[FrozenWire]] = {
    "http": HttpConfig,
    "limits": LimitsConfig,
    "store": StoreConfig,
    "store.retention": RetentionConfig,
    "tracing": TracingConfig,
}


def load_config(
    *,
    environ: Mapping[str, str],
    config_file: Path | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Config:
    """The configuration. Lowest first: defaults; the user's file if there is one, else that of the system; the file
    of `config_file`, else of PIPELINE_ENGINE_CONFIG; the environment; `overrides`, by dotted keys (`http.addr`), of
    which those that are None are passed over.

    An empty variable means that it is not set. Raises InvalidRequestError, with file, line and key, for what is wrong.
    """
    return _Loader({name: value for name, value in environ.items() if value}).load(config_file, overrides or {})


@dataclass(slots=True)
class _Loader:
    """Puts one layer over the other; `values` holds what is set so far, by dotted keys."""

    environ: dict[str, str]
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    providers: dict[str, ProviderProfile] = field(default_factory=dict)
    handlers: dict[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    missing_files: list[Path] = field(default_factory=list)
    private_files: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def load(self, config_file: Path | None, overrides: Mapping[str, object]) -> Config:
        self._add_built_in_profiles()
        self._add_files(config_file)
        self._add_environment()
        self._add_overrides(overrides)
        if "CREDENTIALS_DIRECTORY" in self.environ:
            self.private_files.append(Path(self.environ["CREDENTIALS_DIRECTORY"]))
        data_dir = self._data_dir()
        log_format = LogFormat.JOURNAL if "JOURNAL_STREAM" in self.environ else LogFormat.CONSOLE
        retention = self._table(RetentionConfig, "store.retention")
        return Config(
            log_level=self._value("log_level", LogLevel.INFO),
            log_format=self._value("log_format", log_format),
            data_dir=data_dir,
            pipelines_dirs=self._value("pipelines_dir", ()),
            addresses=self._addresses(data_dir),
            api_key=self._api_key(),
            http=self._table(HttpConfig, "http"),
            limits=self._table(LimitsConfig, "limits"),
            store=msgspec.structs.replace(self._table(StoreConfig, "store"), retention=retention),
            tracing=self._tracing(),
            providers=self.providers,
            handlers=self.handlers,
            pipelines=tuple(demo_pipelines(self.providers)),
            proxies=self._proxies(),
            origins=self.origins,
            files=tuple(self.files),
            missing_files=tuple(self.missing_files),
            private_files=tuple(self.private_files),
            warnings=tuple(self.warnings),
        )

    # --- the layers, lowest first

    def _add_built_in_profiles(self) -> None:
        builtin = find_builtin_profile()
        for profile in (*BUILT_IN_PROFILES, *([] if builtin is None else [builtin])):
            self.providers[profile.id] = profile
            self.origins[f"providers.{profile.id}"] = "default"

    def _add_files(self, config_file: Path | None) -> None:
        user_file = self._xdg("XDG_CONFIG_HOME", ".config") / "pipeline-engine" / "config.toml"
        if not self._add_file(user_file, required=False):
            self._add_file(SYSTEM_FILE, required=False)
        chosen = config_file or self.environ.get("PIPELINE_ENGINE_CONFIG")
        if chosen:
            self._add_file(self._path(str(chosen), Path()), required=True)

    def _add_file(self, file: Path, *, required: bool) -> bool:
        name = str(file)
        try:
            data = file.read_bytes()
        except OSError as exc:
            if not required and isinstance(exc, FileNotFoundError | NotADirectoryError):
                self.missing_files.append(file)
                return False
            raise InvalidRequestError([Problem("", f"cannot be read: {exc.strerror}")], source=name) from exc
        document = parse_document(data, name=name)
        self.files.append(file)

        def origin(key: str) -> str:
            line = document.line_of(key)
            return name if line is None else f"{name}:{line}"

        self._add_layer(document, source=name, origin=origin, folder=file.parent)
        return True

    def _add_environment(self) -> None:
        names = {key: name for name, key in _ENVIRONMENT.items()}
        given: dict[str, object] = {
            key: self.environ[name] for name, key in _ENVIRONMENT.items() if name in self.environ
        }
        for key, (name, value) in tracing_settings(self.environ).items():
            names[key], given[key] = name, value
        try:
            self._add_layer(
                Document(_nested(given), {}),
                source="environment",
                origin=lambda key: f"environment {names[key]}",
                folder=Path(),
            )
        except InvalidRequestError as exc:
            named = [Problem(names.get(problem.path, problem.path), problem.message) for problem in exc.problems]
            raise InvalidRequestError(named, source="environment") from exc
        self._add_environment_profiles()
        known = _ENVIRONMENT.keys() | _OTHER_VARIABLES
        for name in sorted(self.environ):
            if name.startswith("PIPELINE_ENGINE_") and name not in known:
                self.warnings.append(f"environment: {name} means nothing here")

    def _add_environment_profiles(self) -> None:
        ollama = ollama_host(self.environ)
        default_ollama = self.providers["default-ollama"]
        from_file = self.origins["providers.default-ollama"] != "default"
        if ollama is not None and not (from_file and default_ollama.base_uri):
            self.providers["default-ollama"] = msgspec.structs.replace(default_ollama, base_uri=ollama)
            self.origins["providers.default-ollama"] = "environment OLLAMA_HOST"
        for profile, variable in environment_profiles(self.environ):
            self.providers[profile.id] = profile
            self.origins[f"providers.{profile.id}"] = f"environment {variable}"

    def _add_overrides(self, overrides: Mapping[str, object]) -> None:
        given = {key: value for key, value in overrides.items() if value is not None}
        self._add_layer(Document(_nested(given), {}), source="command line", origin=lambda _: "flag", folder=Path())

    def _add_layer(self, document: Document, *, source: str, origin: Callable[[str], str], folder: Path) -> None:
        raw = {} if document.value is None else document.value
        layer, problems = try_decode(raw, _Layer)
        if layer is None:
            raise InvalidRequestError(document.locate(problems), source=source)
        values: dict[str, Any] = {}
        for key in _set_keys(raw):
            value: Any = layer
            for part in key.split("."):
                value = getattr(value, part)
            try:
                values[key] = self._interpreted(key, value, folder)
            except ValueError as exc:
                problems.append(Problem(key, str(exc)))
        for name, target in layer.handlers.items():
            if not _HANDLER.fullmatch(target):
                problems.append(Problem(f"handlers.{name}", f"{target!r} is not of the form module:function"))
        profiles, warnings = self._profiles(layer, folder, problems)
        if problems:
            raise InvalidRequestError(document.locate(problems), source=source)
        self.values |= values
        self.handlers |= layer.handlers
        self.warnings += [f"{source}: {warning}" for warning in document.locate(warnings)]
        self.origins |= {key: origin(key) for key in values}
        self.origins |= {f"handlers.{name}": origin(f"handlers.{name}") for name in layer.handlers}
        for index, profile in enumerate(profiles):
            self.providers[profile.id] = profile
            self.origins[f"providers.{profile.id}"] = origin(f"providers[{index}]")

    def _profiles(
        self, layer: _Layer, folder: Path, problems: list[Problem]
    ) -> tuple[list[ProviderProfile], list[Problem]]:
        profiles: list[ProviderProfile] = []
        warnings: list[Problem] = []
        for index, given in enumerate(layer.providers):
            path = f"providers[{index}]"
            profile, wrong, doubtful = read_profile(
                given, path=path, locate=lambda text: self._private_path(text, folder), environ=self.environ
            )
            if any(profile.id == other.id for other in profiles):
                wrong.append(Problem(f"{path}.id", f"the id {profile.id!r} is used twice"))
            profiles.append(profile)
            problems += wrong
            warnings += doubtful
        return profiles, warnings

    def _interpreted(self, key: str, value: Any, folder: Path) -> Any:
        """The value of a setting as the program needs it. Raises ValueError."""
        if key == "log_level":
            return parse_log_level(value)
        if key == "data_dir":
            return self._path(value, folder)
        if key == "pipelines_dir":
            return tuple(self._path(part, folder) for part in value.split(os.pathsep) if part)
        if key == "http.addr":
            parse_addresses(value)
        if key == "tracing.endpoint":
            check_collector(value)
        if key == "http.allowed_origins":
            for origin in value:
                check_origin(origin)
        return value

    # --- what the layers together mean

    def _value(self, key: str, default: Any) -> Any:
        self.origins.setdefault(key, "default")
        return self.values.get(key, default)

    def _table(self, type_: type[Table], name: str) -> Table:
        given = {}
        for key in type_.__struct_fields__:
            dotted = f"{name}.{key}"
            if dotted in self.values:
                given[key] = self.values[dotted]
            elif dotted not in _TABLES:
                self.origins.setdefault(dotted, "default")
        return type_(**given)

    def _tracing(self) -> TracingConfig:
        tracing = self._table(TracingConfig, "tracing")
        if not tracing.enabled and self.origins["tracing.enabled"] == "default":
            # Who names a collector in the environment wants spans, unless somebody says otherwise.
            name = self.origins["tracing.endpoint"].removeprefix("environment ")
            if not name.startswith("OTEL_"):
                return tracing
            self.origins["tracing.enabled"] = f"environment {name}"
            tracing = msgspec.structs.replace(tracing, enabled=True)
        if tracing.enabled and not is_installed():
            origin = self.origins["tracing.enabled"]
            words = "needs the extra otel: pip install 'pipeline-engine[otel]'"
            if not origin.startswith("environment "):
                raise InvalidRequestError([Problem("tracing.enabled", words)], source=origin)
            self.warnings.append(f"{origin}: tracing {words}")
            tracing = msgspec.structs.replace(tracing, enabled=False)
        return tracing

    def _api_key(self) -> Secret | None:
        self.origins["api_key"] = "default"
        key = self.environ.get("PIPELINE_ENGINE_API_KEY", "").strip()
        if key:
            self.origins["api_key"] = "environment PIPELINE_ENGINE_API_KEY"
            return Secret(key)
        if "PIPELINE_ENGINE_API_KEY_FILE" in self.environ:
            name = "PIPELINE_ENGINE_API_KEY_FILE"
            file = self._private_path(self.environ[name], Path())
        elif "CREDENTIALS_DIRECTORY" in self.environ:
            # systemd sets it for credentials of any kind, so the key need not be among them.
            name = "CREDENTIALS_DIRECTORY"
            file = Path(self.environ[name]) / "api_key"
            if _is_blank(file):
                return None
        else:
            return None
        try:
            secret = read_key_file(file)
        except KeyFileError as exc:
            raise InvalidRequestError([Problem(name, str(exc))], source="environment") from exc
        self.origins["api_key"] = f"environment {name}"
        return secret

    def _data_dir(self) -> Path:
        if "data_dir" in self.values:
            return Path(self.values["data_dir"])
        if "STATE_DIRECTORY" in self.environ:
            self.origins["data_dir"] = "environment STATE_DIRECTORY"
            return Path(self.environ["STATE_DIRECTORY"].split(":")[0])
        self.origins["data_dir"] = "default"
        return self._xdg("XDG_STATE_HOME", ".local/state") / "pipeline-engine"

    def _addresses(self, data_dir: Path) -> tuple[Address, ...]:
        text = self._value("http.addr", None)
        if text is not None:
            return tuple(parse_addresses(text))
        if "RUNTIME_DIRECTORY" in self.environ:
            folder = Path(self.environ["RUNTIME_DIRECTORY"].split(":")[0])
        elif "XDG_RUNTIME_DIR" in self.environ:
            folder = Path(self.environ["XDG_RUNTIME_DIR"]) / "pipeline-engine"
        else:
            folder = data_dir
        socket = os.path.abspath(folder / "engine.sock")  # noqa: PTH100 - resolve() would follow links too
        addresses: list[Address] = parse_addresses(DEFAULT_ADDRESS)
        if len(os.fsencode(socket)) <= MAX_SOCKET_PATH:
            addresses.append(UnixAddress(socket))
        return tuple(addresses)

    def _proxies(self) -> dict[str, str]:
        found = {name: self.environ.get(name) or self.environ.get(name.upper()) for name in _PROXY_VARIABLES}
        return {name: value for name, value in found.items() if value}

    def _home(self) -> Path:
        return Path(self.environ["HOME"]) if "HOME" in self.environ else Path.home()

    def _xdg(self, name: str, default: str) -> Path:
        # The XDG specification has relative paths ignored.
        path = Path(self.environ.get(name, ""))
        return path if path.is_absolute() else self._home() / default

    def _private_path(self, text: str, folder: Path) -> Path:
        """A file with a key in it."""
        path = self._path(text, folder)
        self.private_files.append(path)
        return path

    def _path(self, text: str, folder: Path) -> Path:
        """Raises ValueError for what no system call takes."""
        if "\0" in text:
            raise ValueError("a path cannot hold a zero byte")
        return self._home() / text[2:] if text.startswith("~/") else folder / text


def _is_blank(file: Path) -> bool:
    """Whether there is no credential: a unit without it has a blank one, as systemd takes a missing file for an error."""
    try:
        return not file.read_bytes().strip()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # which who needs it will be told
        return False


def _nested(values: Mapping[str, object]) -> dict[str, object]:
    """Dotted keys as the tables that a file would have."""
    top: dict[str, object] = {}
    for key, value in values.items():
        *tables, name = key.split(".")
        table: Any = top
        for part in tables:
            table = table.setdefault(part, {})
        table[name] = value
    return top


def _set_keys(raw: Any, path: str = "") -> Iterator[str]:
    """The dotted key of each plain setting that a layer sets."""
    for name, value in raw.items():
        key = f"{path}.{name}" if path else name
        if key in _TABLES and isinstance(value, dict):
            yield from _set_keys(value, key)
        elif key not in ("providers", "handlers") and value not in (None, ""):
            yield key
