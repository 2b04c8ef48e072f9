from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from tests.config_setting import load, refusal

from pipeline_engine import config_loader
from pipeline_engine.assembly import retention_rules
from pipeline_engine.config import LogFormat, LogLevel, check_exposure, parse_log_level
from pipeline_engine.decoding import Secret
from pipeline_engine.errors import InvalidRequestError
from pipeline_engine.listen_addresses import TcpAddress, UnixAddress
from pipeline_engine.models import ProviderKind

SERVER = """[[providers]]
id = "x"
kind = "{kind}"
[providers.extra.server]
command = ["serve"]
ready = "{ready}"
"""


def test_without_anything_the_defaults_hold(home: Path) -> None:
    config = load(home)
    assert config.settings() == {
        "log_level": "info",
        "log_format": "console",
        "data_dir": str(home / ".local/state/pipeline-engine"),
        "pipelines_dir": [],
        "http.addr": ["http://127.0.0.1:8085", f"unix:{home}/.local/state/pipeline-engine/engine.sock"],
        "http.allowed_hosts": [],
        "http.allowed_origins": [],
        "http.heartbeat_s": 15.0,
        "http.max_connections": 4096,
        "limits.max_body_bytes": 32 * 1024 * 1024,
        "limits.max_running_jobs": 64,
        "limits.max_queued_jobs": 10_000,
        "limits.max_store_bytes": None,
        "limits.shutdown_grace_s": 20.0,
        "limits.follower_stall_s": 300.0,
        "limits.max_restarts": 20,
        "limits.template_fuel": 20_000_000,
        "limits.max_items": 10_000,
        "store.durability": "normal",
        "store.retention.max_age_days": 30.0,
        "store.retention.max_jobs": 100_000,
        "store.retention.max_bytes": None,
        "store.retention.chunk_age_days": 7.0,
        "tracing.enabled": False,
        "tracing.endpoint": "http://localhost:4318/v1/traces",
        "tracing.content": False,
    }
    assert config.api_key is None
    # `builtin` is there where its packages are.
    assert [profile_id for profile_id in config.providers if profile_id != "builtin"] == [
        "default-openai",
        "default-ollama",
        "default-image",
        "default-local",
    ]
    assert (config.pipelines, config.proxies, config.handlers, config.files, config.warnings) == ((), {}, {}, (), ())
    assert set(config.origins.values()) == {"default"}
    assert config.settings().keys() <= config.origins.keys()


def test_every_table_can_be_set_in_a_file(home: Path) -> None:
    config = load(
        home,
        """
log_level = "WARN"
log_format = "json"
data_dir = "state"
pipelines_dir = "~/mine:more:/abs"

[http]
addr = ":9000"
allowed_hosts = ["engine.example"]
allowed_origins = ["http://App.example:3000", "app://ui", "http://[::1]:8443"]
heartbeat_s = 5

[limits]
max_running_jobs = 2
max_store_bytes = 1_000_000

[store]
durability = "full"
retention.max_age_days = 0.5

[handlers]
shout = "my.module:shout"
""",
    )
    assert (config.log_level, config.log_format) == (LogLevel.WARNING, LogFormat.JSON)
    assert config.data_dir == home / "state"
    assert config.pipelines_dirs == (home / "mine", home / "more", Path("/abs"))
    assert config.addresses == (TcpAddress("127.0.0.1", 9000),)
    assert (config.http.allowed_hosts, config.http.heartbeat_s) == (["engine.example"], 5.0)
    assert config.http.allowed_origins == ["http://App.example:3000", "app://ui", "http://[::1]:8443"]
    assert (config.limits.max_running_jobs, config.limits.max_store_bytes) == (2, 1_000_000)
    assert (config.store.durability, config.store.retention.max_age_days) == ("full", 0.5)
    assert config.store.retention.max_jobs == 100_000
    assert config.handlers == {"shout": "my.module:shout"}
    file = home / "config.toml"
    assert config.files == (file,)
    assert config.origins["limits.max_running_jobs"] == f"{file}:14"
    assert config.origins["store.retention.max_age_days"] == f"{file}:19"
    assert config.origins["store.retention.max_jobs"] == "default"
    assert config.origins["handlers.shout"] == f"{file}:22"


def test_higher_layers_win_key_by_key(home: Path) -> None:
    user_file = home / "xdg/pipeline-engine/config.toml"
    user_file.parent.mkdir(parents=True)
    user_file.write_text(
        'log_level = "debug"\ndata_dir = "/user"\npipelines_dir = "/user"\n'
        "[limits]\nmax_items = 1\nmax_restarts = 1\n[http]\naddr = ':1'\n",
        encoding="utf-8",
    )
    config = load(
        home,
        'data_dir = "/file"\npipelines_dir = "/file"\n[limits]\nmax_items = 2\n[http]\naddr = ":2"\n',
        {"http.addr": ":4", "log_level": None},
        XDG_CONFIG_HOME=str(home / "xdg"),
        PIPELINE_ENGINE_PIPELINES_DIR="/environment",
        PIPELINE_ENGINE_ADDR=":3",
        PIPELINE_ENGINE_DATA_DIR="",
    )
    assert (config.log_level, config.limits.max_restarts, config.limits.max_items) == (LogLevel.DEBUG, 1, 2)
    assert (config.data_dir, config.pipelines_dirs) == (Path("/file"), (Path("/environment"),))
    assert config.addresses == (TcpAddress("127.0.0.1", 4),)
    assert config.files == (user_file, home / "config.toml")
    assert config.origins["log_level"] == f"{user_file}:1"
    assert config.origins["data_dir"] == f"{home}/config.toml:1"
    assert config.origins["pipelines_dir"] == "environment PIPELINE_ENGINE_PIPELINES_DIR"
    assert config.origins["http.addr"] == "flag"


def test_the_systems_file_counts_only_when_the_user_has_none(home: Path) -> None:
    system = home / "etc/config.toml"
    system.parent.mkdir()
    system.write_text('log_level = "error"', encoding="utf-8")
    assert load(home).log_level is LogLevel.ERROR
    user_file = home / ".config/pipeline-engine/config.toml"
    user_file.parent.mkdir(parents=True)
    user_file.write_text("[limits]\nmax_items = 3", encoding="utf-8")
    config = load(home)
    assert (config.log_level, config.limits.max_items) == (LogLevel.INFO, 3)


def test_a_file_can_be_named_by_the_environment(home: Path) -> None:
    file = home / "other.toml"
    file.write_text("limits.max_items = 5", encoding="utf-8")
    assert load(home, PIPELINE_ENGINE_CONFIG=str(file)).limits.max_items == 5
    assert load(home, "", PIPELINE_ENGINE_CONFIG=str(file)).limits.max_items == 10_000


def test_a_file_that_was_named_must_be_there(home: Path) -> None:
    message = refusal(home, PIPELINE_ENGINE_CONFIG=str(home / "none.toml"))
    assert message == f"{home}/none.toml: cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("\n[limits]\nmax_running_job = 1\n", 3, "limits.max_running_job: unknown key"),
        ("[limits\n", 1, "not valid TOML"),
        ('[limits]\nmax_running_jobs = "many"\n', 2, "limits.max_running_jobs: expected a whole number"),
        ("[limits]\nmax_running_jobs = 0\n", 2, "limits.max_running_jobs: expected a whole number >= 1"),
        ("[limits]\nmax_running_jobs = true\n", 2, "limits.max_running_jobs"),
        ("[limit]\nmax_items = 1\n", 1, "limit: unknown key"),
        ("[http]\nheartbeat_s = 0\n", 2, "http.heartbeat_s"),
        ('[http]\naddr = "nowhere"\n', 2, "http.addr: the address 'nowhere' has no port"),
        ('[http]\nallowed_hosts = ["a", 1]\n', 2, "http.allowed_hosts[1]: expected a text"),
        ('[http]\nallowed_origins = ["http://a", "*"]\n', 2, "http.allowed_origins: '*' is not an origin"),
        ('[http]\nallowed_origins = ["null"]\n', 2, "http.allowed_origins: 'null' is not an origin"),
        ('[http]\nallowed_origins = ["https://a.example/"]\n', 2, "'https://a.example/' is not an origin"),
        ('[http]\nallowed_origins = ["https://a.example:443"]\n', 2, "without the default port"),
        ('log_level = "loud"\n', 1, "log_level: 'loud' is not one of debug"),
        ('log_format = "xml"\n', 1, "log_format: 'xml' is not one of console"),
        ('[store]\ndurability = "high"\n', 2, "store.durability: 'high' is not one of normal, full"),
        ("[store.retention]\nmax_age = 1\n", 2, "store.retention.max_age: unknown key"),
        ("[store.retention]\nmax_age_days = inf\n", 2, "store.retention.max_age_days: is not a finite number"),
        ("[store.retention]\nmax_age_days = 1e12\n", 2, "store.retention.max_age_days: expected a number <= 999999999"),
        (
            "[store.retention]\nchunk_age_days = 1e12\n",
            2,
            "store.retention.chunk_age_days: expected a number <= 999999999",
        ),
        ('[handlers]\nx = "no colon"\n', 2, "handlers.x: 'no colon' is not of the form module:function"),
        ('[[providers]]\nid = "x"\nkind = "magic"\n', 3, "providers[0].kind: 'magic' is not one of openai"),
        ('[[providers]]\nkind = "openai"\n', 1, "providers[0].id: is required"),
        ('[[providers]]\nid = "x"\nkind = "local_tool"\n', 1, "providers[0].extra.command: is required"),
        (SERVER.format(kind="openai", ready="127.0.0.1:1/health"), 6, "extra.server.ready: must begin with http://"),
        (SERVER.format(kind="openai", ready="http://h:port/"), 6, "extra.server.ready: 'http://h:port/' is not"),
        (SERVER.format(kind="openai", ready="http://h..:1/"), 6, "a part of the host's name is empty or too long"),
        (SERVER.format(kind="local_tool", ready="http://h/"), 4, "extra.server: is for model servers"),
        ('[[providers]]\nid = "x"\nkind = "openai"\nbase_uri = "ftp://x"\n', 4, "ftp://x"),
        ('[[providers]]\nid = "x"\nkind = "openai"\n[providers.extra]\ntimeout = 1\n', 5, "extra.timeout: unknown key"),
        ('[[providers]]\nid = "x"\nkind = "openai"\n\n[[providers]]\nid = "x"\nkind = "image"\n', 6, "used twice"),
        ('[[providers]]\nid = "x"\nkind = "openai"\napi_key = "k"\napi_key_env = "K"\n', 5, "only one of api_key"),
        ('[[providers]]\nid = "x"\nkind = "openai"\napi_key_file = "none"\n', 4, "none cannot be read"),
        (
            '[[providers]]\nid = "x"\nkind = "openai"\napi_key_file = "k\\u0000"\n',
            4,
            "api_key_file: a path cannot hold a zero",
        ),
        ('\ndata_dir = "a\\u0000b"\n', 2, "data_dir: a path cannot hold a zero byte"),
        ('\npipelines_dir = "a:b\\u0000"\n', 2, "pipelines_dir: a path cannot hold a zero byte"),
    ],
)
def test_a_mistake_in_a_file_is_refused_with_file_line_and_key(home: Path, text: str, line: int, words: str) -> None:
    message = refusal(home, text)
    assert message.startswith(f"{home}/config.toml: line {line}: "), message
    assert words in message


def test_jobs_may_be_kept_for_as_long_as_can_be_said(home: Path) -> None:
    rules = retention_rules(load(home, "[store.retention]\nmax_age_days = 999999999\nchunk_age_days = 999999999\n"))
    assert rules.max_age == rules.chunk_age == timedelta(days=999_999_999)


def test_all_mistakes_of_a_file_come_at_once(home: Path) -> None:
    message = refusal(home, 'log_level = "loud"\n[http]\naddr = "x"\n[handlers]\na = "b"\n')
    assert [line.split(": ")[1] for line in message.splitlines()] == ["line 1", "line 3", "line 5"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PIPELINE_ENGINE_ADDR", "nowhere"),
        ("PIPELINE_ENGINE_LOG_LEVEL", "loud"),
        ("PIPELINE_ENGINE_LOG_FORMAT", "xml"),
        ("PIPELINE_ENGINE_ENABLE_OLLAMA", "perhaps"),
        ("PIPELINE_ENGINE_OPENAI_BASE_URL", "ftp://x"),
        ("OLLAMA_HOST", "0.0.0.0:99999"),
        ("OLLAMA_HOST", "ftp://gpu.example"),
        ("PIPELINE_ENGINE_API_KEY_FILE", "/nonexistent/key"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable_and_its_value(home: Path, name: str, value: str) -> None:
    message = refusal(home, **{name: value})
    assert message.startswith(f"environment: {name}: ")
    assert value in message


def test_a_password_in_an_address_is_not_repeated(home: Path) -> None:
    message = refusal(home, OLLAMA_HOST="http://me:s3cret@gpu.example")
    assert "OLLAMA_HOST" in message
    assert "s3cret" not in message


def test_a_mistake_in_a_flag_names_its_key(home: Path) -> None:
    assert refusal(home, None, {"http.addr": "nowhere"}).startswith("command line: http.addr: ")
    assert refusal(home, None, {"limits.max_item": 1}).startswith("command line: limits.max_item: unknown key")


def test_variables_with_a_misspelt_name_are_warned_of(home: Path) -> None:
    config = load(home, PIPELINE_ENGINE_API_KEY_FIEL="/x", PIPELINE_ENGINE_URL="http://127.0.0.1:1")
    assert config.warnings == ("environment: PIPELINE_ENGINE_API_KEY_FIEL means nothing here",)


# --- paths, addresses, logging ----------------------------------------------------------------------------------------


def test_the_data_directory_follows_systemd_and_xdg(home: Path) -> None:
    assert load(home, XDG_STATE_HOME="/state").data_dir == Path("/state/pipeline-engine")
    assert load(home, XDG_STATE_HOME="relative").data_dir == home / ".local/state/pipeline-engine"
    config = load(home, XDG_STATE_HOME="/state", STATE_DIRECTORY="/var/lib/a:/var/lib/b")
    assert (config.data_dir, config.origins["data_dir"]) == (Path("/var/lib/a"), "environment STATE_DIRECTORY")
    assert load(home, STATE_DIRECTORY="/var/lib/a", PIPELINE_ENGINE_DATA_DIR="~/d").data_dir == home / "d"


def test_the_default_socket_stands_in_the_runtime_directory(home: Path) -> None:
    assert load(home, XDG_RUNTIME_DIR="/run/user/1").addresses[1] == UnixAddress(
        "/run/user/1/pipeline-engine/engine.sock"
    )
    config = load(home, XDG_RUNTIME_DIR="/run/user/1", RUNTIME_DIRECTORY="/run/pe")
    assert config.addresses[1] == UnixAddress("/run/pe/engine.sock")
    assert len(load(home, PIPELINE_ENGINE_DATA_DIR="/" + "x" * 200).addresses) == 1


def test_an_address_that_others_can_reach_needs_a_key(home: Path) -> None:
    check_exposure(load(home))
    check_exposure(load(home, PIPELINE_ENGINE_ADDR="0.0.0.0:1", PIPELINE_ENGINE_API_KEY="k"))
    config = load(home, PIPELINE_ENGINE_ADDR=":1,0.0.0.0:2,unix:/x")
    with pytest.raises(InvalidRequestError, match="PIPELINE_ENGINE_API_KEY") as caught:
        check_exposure(config)
    assert str(caught.value).startswith("environment PIPELINE_ENGINE_ADDR: http.addr: http://0.0.0.0:2 can be reached")


def test_under_systemd_the_log_goes_to_the_journal(home: Path) -> None:
    assert load(home, JOURNAL_STREAM="8:1").log_format is LogFormat.JOURNAL
    assert load(home, JOURNAL_STREAM="8:1", PIPELINE_ENGINE_LOG_FORMAT="json").log_format is LogFormat.JSON


def test_log_levels_are_read_in_any_case() -> None:
    assert [parse_log_level(text) for text in ("DEBUG", " warn ", "Error")] == ["debug", "warning", "error"]
    with pytest.raises(ValueError, match="'loud' is not one of debug, info, warning, error, critical"):
        parse_log_level("loud")


# --- profiles and demo pipelines --------------------------------------------------------------------------------------


def test_a_profile_in_a_file_replaces_the_built_in_one(home: Path) -> None:
    config = load(
        home,
        '[[providers]]\nid = "default-openai"\nkind = "openai"\nbase_uri = "gpu.example/v1/"\n'
        "[providers.extra]\nmax_concurrency = 2\n",
    )
    profile = config.providers["default-openai"]
    assert (profile.base_uri, profile.default_model, profile.extra.max_concurrency) == ("http://gpu.example/v1", "", 2)
    assert config.origins["providers.default-openai"] == f"{home}/config.toml:1"


def test_ollama_host_is_where_ollama_is_looked_for(home: Path) -> None:
    config = load(home, OLLAMA_HOST="0.0.0.0:8080", PIPELINE_ENGINE_ENABLE_OLLAMA="1")
    assert config.providers["default-ollama"].base_uri == "http://127.0.0.1:8080"
    assert config.providers["ollama-cli"].base_uri == "http://127.0.0.1:8080"
    assert config.origins["providers.default-ollama"] == "environment OLLAMA_HOST"
    config = load(
        home,
        '[[providers]]\nid = "default-ollama"\nkind = "ollama"\nbase_uri = "http://gpu.example:1"\n',
        OLLAMA_HOST=":2",
        PIPELINE_ENGINE_ENABLE_OLLAMA="1",
        PIPELINE_ENGINE_OLLAMA_BASE_URL="http://127.0.0.1:3/",
    )
    assert config.providers["default-ollama"].base_uri == "http://gpu.example:1"
    assert config.providers["ollama-cli"].base_uri == "http://127.0.0.1:3"


def test_the_environment_switches_profiles_and_demo_pipelines_on(home: Path) -> None:
    config = load(
        home,
        PIPELINE_ENGINE_OPENAI_API_KEY="sk-x",
        PIPELINE_ENGINE_OPENAI_MODEL="some-model",
        PIPELINE_ENGINE_ENABLE_OLLAMA="true",
        PIPELINE_ENGINE_OLLAMA_MODEL="small",
    )
    openai, ollama = config.providers["openai-cli"], config.providers["ollama-cli"]
    assert (openai.kind, openai.base_uri, openai.api_key) == (
        ProviderKind.OPENAI,
        "https://api.openai.com/v1",
        Secret("sk-x"),
    )
    assert (openai.default_model, ollama.default_model) == ("some-model", "small")
    exported = {pipeline.type: sum(step.export for step in pipeline.steps) for pipeline in config.pipelines}
    assert exported == {
        "openai.summarize.v1": 1,
        "openai.chain.v1": 1,
        "openai.funmarkdown.v1": 3,
        "ollama.summarize.v1": 1,
    }
    assert config.origins["providers.openai-cli"] == "environment PIPELINE_ENGINE_OPENAI_API_KEY"
    assert "sk-x" not in repr(config)


@pytest.mark.parametrize("value", ["", "0", "false"])
def test_ollama_can_be_left_off(home: Path, value: str) -> None:
    assert "ollama-cli" not in load(home, PIPELINE_ENGINE_ENABLE_OLLAMA=value).providers


def test_proxies_are_collected_in_either_case(home: Path) -> None:
    config = load(
        home, HTTP_PROXY="http://a", http_proxy="http://b", ALL_PROXY="socks5h://c", no_proxy="x", https_proxy=""
    )
    assert config.proxies == {"http_proxy": "http://b", "all_proxy": "socks5h://c", "no_proxy": "x"}


def test_the_configuration_cannot_be_changed(home: Path) -> None:
    config = load(home)
    with pytest.raises(AttributeError):
        config.log_level = LogLevel.DEBUG  # type: ignore[misc]
    with pytest.raises(AttributeError):
        config.limits.max_items = 1  # type: ignore[misc]
    assert msgspec.structs.replace(config.limits, max_items=1).max_items == 1


TRACING = "[tracing]\nenabled = true\nendpoint = 'http://file:4318/v1/traces'\n"


@pytest.mark.parametrize(
    ("text", "environ", "wanted"),
    [
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, (True, "http://c:4318/v1/traces")),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://c/x"}, (True, "https://c/x")),
        (None, {"OTEL_TRACES_EXPORTER": "otlp"}, (True, "http://localhost:4318/v1/traces")),
        (TRACING, {}, (True, "http://file:4318/v1/traces")),
        (TRACING, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, (True, "http://c:4318/v1/traces")),
        (TRACING, {"OTEL_TRACES_EXPORTER": "none"}, (False, "http://file:4318/v1/traces")),
        (TRACING, {"OTEL_SDK_DISABLED": "true"}, (False, "http://file:4318/v1/traces")),
        ("[tracing]\nenabled = false\n", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, (False, "http://c/v1/traces")),
        ("[tracing]\nendpoint = 'http://c/x'\n", {}, (False, "http://c/x")),
    ],
)
def test_tracing_is_on_when_the_file_or_the_standard_variables_say_so(
    home: Path, text: str | None, environ: dict[str, str], wanted: tuple[bool, str]
) -> None:
    tracing = load(home, text, **environ).tracing
    assert (tracing.enabled, tracing.endpoint) == wanted


@pytest.mark.parametrize("endpoint", ["http://me:secret@c/v1/traces", "http://c/v1/traces?key=secret", "c:4318"])
def test_an_address_of_a_collector_that_could_hold_a_secret_is_refused_without_showing_it(
    home: Path, endpoint: str
) -> None:
    for message in (
        refusal(home, f"[tracing]\nendpoint = '{endpoint}'\n"),
        refusal(home, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=endpoint),
    ):
        assert "secret" not in message
        assert "tracing.endpoint: must" in message or "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: must" in message


def test_tracing_without_its_extra_is_refused_in_a_file_and_passed_over_in_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_loader, "is_installed", lambda: False)
    assert "tracing.enabled: needs the extra otel: pip install" in refusal(home, TRACING)
    config = load(home, OTEL_TRACES_EXPORTER="otlp")
    assert config.tracing.enabled is False
    assert config.warnings == (
        "environment OTEL_TRACES_EXPORTER: tracing needs the extra otel: pip install 'pipeline-engine[otel]'",
    )
