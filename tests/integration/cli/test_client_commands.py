"""The commands that are clients of the daemon, as processes against one real daemon."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tests.command_setting import COMMAND, GOOD, call, ok, ok_json
from tests.daemon_process import PATIENCE, DaemonProcess, until

from pipeline_engine_sdk import PipelineEngineClient

BAD = "type: put.v1\nsteps:\n  - {id: a, kind: magic}\n"


def test_submit_follows_a_job_and_prints_its_result(daemon: DaemonProcess) -> None:
    done = call(daemon, "submit", "words.v1", "--source", f"note:in={daemon.home / 'config.toml'}", "--follow")
    assert (done.returncode, done.stdout) == (0, "1 sources\n")
    assert "Count: success" in done.stderr
    source = f"--source={daemon.home / 'config.toml'}"
    assert call(daemon, "submit", "words.v1", source, "--follow", "--quiet").stderr == ""


def test_submit_prints_the_id_of_the_job(daemon: DaemonProcess) -> None:
    arguments = ("submit", "words.v1", "--label", "team=a", "--key", "k1")
    job_id = ok(daemon, *arguments).strip()
    assert job_id.startswith("job_")
    assert ok_json(daemon, *arguments)["job"]["id"] == job_id
    assert ok_json(daemon, "jobs", "list", "--label", "team=a")["jobs"][0]["id"] == job_id
    assert ok_json(daemon, "jobs", "list", "--label", "team=b") == {"jobs": []}


def test_submit_takes_a_definition_from_a_file(daemon: DaemonProcess, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(GOOD, encoding="utf-8")
    assert ok_json(daemon, "submit", str(tmp_path / "p.yaml"), "--follow")["job"]["pipeline_type"] == "put.v1"
    missing = call(daemon, "submit", str(tmp_path / "none.yaml"))
    assert (missing.returncode, "none.yaml" in missing.stderr) == (2, True)


@pytest.mark.parametrize("is_put", [False, True])
def test_an_option_that_the_schema_calls_a_text_is_one(daemon: DaemonProcess, tmp_path: Path, *, is_put: bool) -> None:
    schema = "options_schema: {properties: {v: {type: string}, w: {allOf: [{type: string}]}}}\n"
    file = tmp_path / "texts.yaml"
    file.write_text(GOOD.replace("put.v1", "texts.v1") + schema, encoding="utf-8")
    if is_put:
        ok(daemon, "pipelines", "put", str(file))
    pipeline = "texts.v1" if is_put else str(file)
    assert ok_json(daemon, "submit", pipeline, "-o", "v=1.10")["job"]["input"]["options"] == {"v": "1.10"}
    refused = call(daemon, "submit", pipeline, "-o", "w=2024")
    assert (refused.returncode, refused.stderr.endswith("""; as a text it is written -o 'w="2024"'\n""")) == (2, True)


def test_a_failed_job_is_told_and_counts_as_one(daemon: DaemonProcess) -> None:
    done = call(daemon, "submit", "shell.v1", "--option", "script=echo no >&2; exit 3", "--follow")
    assert done.returncode == 1
    assert "tool_failed" in done.stderr
    assert "no" in done.stderr.splitlines()


def test_ctrl_c_on_submit_cancels_the_job(daemon: DaemonProcess, client: PipelineEngineClient) -> None:
    label = "--label=test=ctrl-c"
    process = subprocess.Popen(
        [*COMMAND, "submit", "shell.v1", "--option", "script=sleep 60", "--follow", label],
        env=daemon.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    until(lambda: any(job.status == "running" for job in client.list_jobs(labels={"test": "ctrl-c"}).jobs))
    time.sleep(0.2)  # so that it follows, and does not only submit
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "Traceback" in errors) == (130, False)
    assert [job.status for job in client.list_jobs(labels={"test": "ctrl-c"}).jobs] == ["cancelled"]


def test_tokens_come_live_on_a_terminal(daemon: DaemonProcess, client: PipelineEngineClient) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "submit", "shell.v1", "--option", "script=echo token-one; sleep 60", "--follow"],
        env=daemon.environment | {"TERM": "xterm"},
        stdout=follower,
        stderr=follower,
        stdin=follower,
    )
    os.close(follower)
    shown = b""
    while b"token-one" not in shown:
        shown += os.read(leader, 65536)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    os.close(leader)


def test_definitions_are_listed_checked_drawn_and_put(daemon: DaemonProcess, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(GOOD, encoding="utf-8")
    bad.write_text(BAD, encoding="utf-8")
    assert ok(daemon, "pipelines", "put", str(good)) == "put.v1 2\n"
    assert "put.v1" in ok(daemon, "pipelines", "list")
    assert "kind: map" in ok(daemon, "pipelines", "show", "put.v1")
    assert ok(daemon, "pipelines", "validate", str(good)).endswith("put.v1: ok\n")
    done = call(daemon, "pipelines", "validate", str(good), str(bad))
    assert (done.returncode, f"{bad}: line 3: steps[0].kind: 'magic'" in done.stdout) == (2, True)
    assert ok(daemon, "pipelines", "graph", "words.v1").startswith("flowchart TD")
    assert "digraph" in ok(daemon, "pipelines", "graph", str(good), "--format", "dot")
    assert "  count [reduce, single] *  <- each" in ok(daemon, "pipelines", "graph", "words.v1", "--format", "text")
    for refused in (("pipelines", "put"), ("pipelines", "graph"), ("submit",)):
        done = call(daemon, *refused, str(bad))
        assert (done.returncode, f"{bad}: line 3: steps[0].kind: 'magic'" in done.stderr) == (2, True), done.stderr
    ok(daemon, "pipelines", "delete", "put.v1")
    assert call(daemon, "pipelines", "show", "put.v1").returncode == 2


def test_every_file_is_checked_and_each_problem_has_its_line(daemon: DaemonProcess, tmp_path: Path) -> None:
    several, broken, good = tmp_path / "several.yaml", tmp_path / "broken.yaml", tmp_path / "good.yaml"
    several.write_text(
        "pipelines:\n- type: a.v1\n  steps: [{id: a, kind: map, config: {map: identity}}]\n"
        "- type: b.v1\n  steps:\n  - id: b\n    kind: llm\n    provider_profile_id: shel\n",
        encoding="utf-8",
    )
    broken.write_text("type: x\nsteps: [\n", encoding="utf-8")
    good.write_text(GOOD, encoding="utf-8")
    done = call(daemon, "pipelines", "validate", *map(str, (several, broken, good)))
    assert done.returncode == 2
    assert f"{several}: a.v1: ok\n{several}: b.v1: not valid\n" in done.stdout
    place = f"{several}: line 8: pipelines[1].steps[0].provider_profile_id: "
    assert f"{place}there is no provider profile 'shel'; did you mean 'shell'? known: " in done.stdout
    assert f"{broken}: not valid\n{broken}: line 3: " in done.stdout
    assert done.stdout.endswith(f"{good}: put.v1: ok\n")
    results = json.loads(call(daemon, "pipelines", "validate", str(several), "--json").stdout)["results"]
    assert [error["line"] for result in results for error in result["errors"]] == [8]


@pytest.mark.parametrize("text", ["steps: []\n", "- 1\n", "[]\n", "type: 1\n"])
def test_what_is_no_definition_is_refused_in_words(daemon: DaemonProcess, tmp_path: Path, text: str) -> None:
    file = tmp_path / "none.yaml"
    file.write_text(text, encoding="utf-8")
    for command in (("pipelines", "put"), ("submit",), ("pipelines", "validate")):
        done = call(daemon, *command, str(file))
        assert (done.returncode, str(file) in done.stderr + done.stdout) == (2, True)
        assert "Traceback" not in done.stderr


def test_profiles_are_listed_and_changed_without_their_keys(daemon: DaemonProcess) -> None:
    arguments = ("providers", "set", "cloud", "--kind", "openai", "--base-uri", "http://127.0.0.1:9")
    done = call(daemon, *arguments, "--api-key-env", "CLOUD_KEY", CLOUD_KEY="sk-hidden")
    assert done.returncode == 0, done.stderr
    ok(daemon, "providers", "set", "cloud", "--model", "m2", "--extra", '{"timeout_s": 5}')
    [cloud] = [one for one in ok_json(daemon, "providers", "list")["providers"] if one["id"] == "cloud"]
    assert (cloud["default_model"], cloud["api_key_set"], cloud["extra"]) == ("m2", True, {"timeout_s": 5})
    assert "sk-hidden" not in ok(daemon, "providers", "list")
    assert call(daemon, *arguments, "--api-key-env", "NO_SUCH_KEY").returncode == 2
    assert call(daemon, "providers", "set", "cloud", "--extra", "{").returncode == 2


def test_headers_stay_with_the_daemon_until_the_address_moves(daemon: DaemonProcess) -> None:
    def extra_of() -> dict[str, Any]:
        [profile] = [one for one in ok_json(daemon, "providers", "list")["providers"] if one["id"] == "team"]
        return dict(profile["extra"])

    extra = json.dumps({"headers": {"X-Team": "blue"}, "timeout_s": 5})
    ok(daemon, "providers", "set", "team", "--kind", "openai", "--base-uri", "http://127.0.0.1:9", "--extra", extra)
    ok(daemon, "providers", "set", "team", "--model", "m2")
    assert extra_of() == {"headers": {"X-Team": "***"}, "timeout_s": 5}
    ok(daemon, "providers", "set", "team", "--base-uri", "http://127.0.0.1:10")
    assert extra_of() == {"timeout_s": 5}


def test_settings_are_shown_with_their_origin(daemon: DaemonProcess) -> None:
    settings = ok_json(daemon, "config", "show")["settings"]
    assert settings["limits.max_running_jobs"] == {"value": 64, "origin": "default"}
    assert "PIPELINE_ENGINE_DATA_DIR" in settings["data_dir"]["origin"]
    assert "config.toml:2" in settings["providers.shell"]["origin"]
    done = call(daemon, "config", "show", PIPELINE_ENGINE_API_KEY="sk-hidden")
    assert (done.returncode, "sk-hidden" in done.stdout) == (0, False)


def test_doctor_finds_all_well_or_says_what_is_not(daemon: DaemonProcess, client: PipelineEngineClient) -> None:
    checks = {one["check"]: one["state"] for one in ok_json(daemon, "doctor")["checks"]}
    assert {checks[name] for name in ("python", "configuration", "data directory", "daemon", "store")} == {"ok"}
    client.upsert_provider_profile({"id": "away", "kind": "ollama", "base_uri": "http://127.0.0.1:9"})
    [line] = [line for line in ok(daemon, "doctor").splitlines() if "provider away" in line]
    client.delete_provider_profile("away")
    assert line.startswith("warning")
    assert "start it with `ollama serve`" in line
    assert checks["tracing"] == "ok"
    done = call(daemon, "doctor", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert "on, but http://127.0.0.1:9/v1/traces cannot be reached" in done.stdout
    broken = daemon.home / "broken.toml"
    broken.write_text("[limits]\nbogus = 1\n", encoding="utf-8")
    done = call(daemon, "doctor", PIPELINE_ENGINE_CONFIG=str(broken))
    assert (done.returncode, "bogus" in done.stdout) == (1, True)
    broken = daemon.home / "pipelines" / "later.yaml"
    broken.write_text("type: later.v1\nsteps: []\n", encoding="utf-8")
    until(lambda: len(client.list_broken_files()) == 1)
    listed = call(daemon, "pipelines", "list")
    assert (listed.returncode, listed.stderr) == (0, f"not in force: {broken}: line 2: steps: must not be empty\n")
    assert ok_json(daemon, "pipelines", "list")["broken_files"] == client.list_broken_files()
    done = call(daemon, "doctor")
    assert done.returncode == 1
    assert f"failed       definitions     {broken}: line 2: steps: must not be empty" in done.stdout
    broken.unlink()
    until(lambda: not client.list_broken_files())
    away = call(daemon, "doctor", "--url", "http://127.0.0.1:9")
    assert (away.returncode, "start it with `pipeline-engine serve`" in away.stdout) == (3, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobs", "list"),
        ("submit", "words.v1"),
        ("follow", "job_x"),
        ("pipelines", "list"),
        ("providers", "list"),
    ],
)
def test_a_daemon_that_cannot_be_reached_is_named(daemon: DaemonProcess, arguments: tuple[str, ...]) -> None:
    done = call(daemon, *arguments, PIPELINE_ENGINE_URL="http://127.0.0.1:9")
    assert (done.returncode, "http://127.0.0.1:9" in done.stderr, "Traceback" in done.stderr) == (3, True, False)


def test_the_unix_socket_is_as_good(daemon: DaemonProcess) -> None:
    assert "words.v1" in ok(daemon, "pipelines", "list", "--url", f"unix:{daemon.socket}")


def test_a_first_pipeline_runs_as_it_is_written(daemon: DaemonProcess, tmp_path: Path) -> None:
    file = tmp_path / "first.yaml"
    ok(daemon, "init", str(file))
    done = call(daemon, "submit", str(file), "--source", f"note:me={file}", "--follow")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("me: ")
    again = call(daemon, "init", str(file))
    assert (again.returncode, "is there already" in again.stderr) == (2, True)


def test_a_first_pipeline_is_yaml_by_its_name_too(daemon: DaemonProcess, tmp_path: Path) -> None:
    done = call(daemon, "init", str(tmp_path / "first.json"))
    assert (done.returncode, f"name it {tmp_path / 'first.yaml'}" in done.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("label", ["foo", "a:b", "=x"])
def test_what_is_no_label_is_refused(daemon: DaemonProcess, label: str) -> None:
    for command in (("jobs", "list"), ("submit", "words.v1"), ("export",)):
        done = call(daemon, *command, "--label", label)
        assert (done.returncode, f"'{label}' is not NAME=VALUE" in done.stderr) == (2, True)


def test_convert_translates_what_it_can_and_names_the_rest(daemon: DaemonProcess, tmp_path: Path) -> None:
    old = tmp_path / "old.yaml"
    prompt = "{{range .Sources}}{{.Content}}{{end}}"
    old.write_text(f"type: o.v1\nsteps:\n  - {{id: a, kind: llm, prompt: {{user: '{prompt}'}}}}\n", encoding="utf-8")
    converted = ok_json(daemon, "convert", str(old))
    expected = "{% for source in sources %}{{ source.content }}{% endfor %}"
    assert converted["result"]["steps"][0]["prompt"]["user"] == expected
    template = tmp_path / "t.tmpl"
    template.write_text('{{.Options.X}} {{template "y"}}', encoding="utf-8")
    done = call(daemon, "convert", str(template), "-o", str(tmp_path / "new.txt"))
    assert (done.returncode, "template has no counterpart" in done.stderr) == (1, True)
    assert (tmp_path / "new.txt").read_text(encoding="utf-8").startswith("{{ options.x }}")


PRINTING = [
    ("--help",),
    ("config", "show", "--json"),
    ("jobs", "list"),
    ("submit", "words.v1", "--source", "note:me={home}/first.yaml", "--follow", "--quiet"),
    ("run", "{home}/first.yaml", "--source", "note:me={home}/first.yaml", "--quiet"),
    ("export",),
    ("systemd", "install", "--user", "--dry-run"),
]


def call_writing_to(
    daemon: DaemonProcess, arguments: tuple[str, ...], output: int, **variables: str
) -> tuple[int, str]:
    """The exit code of a command, and what it says on standard error."""
    file = daemon.home / "first.yaml"
    if not file.exists():
        ok(daemon, "init", str(file))
    ok(daemon, "submit", "words.v1", "--follow")  # so that there is something to print
    filled = [argument.format(home=daemon.home) for argument in arguments]
    environment = {name: value for name, value in daemon.environment.items() if name != "PYTHONUNBUFFERED"} | variables
    done = subprocess.run(
        [*COMMAND, *filled],
        env=environment,
        stdout=output,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", PRINTING, ids=lambda arguments: arguments[0])
def test_a_program_whose_output_nobody_reads_ends_without_a_word(
    daemon: DaemonProcess, arguments: tuple[str, ...]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as after `| head -0`
    try:
        assert call_writing_to(daemon, arguments, writer) == (141, "")
    finally:
        os.close(writer)


@pytest.mark.parametrize("variables", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", PRINTING, ids=lambda arguments: arguments[0])
def test_output_that_the_disk_does_not_take_is_told_in_a_line(
    daemon: DaemonProcess, arguments: tuple[str, ...], variables: dict[str, str]
) -> None:
    with Path("/dev/full").open("wb") as full:
        done = call_writing_to(daemon, arguments, full.fileno(), **variables)
    assert done == (1, "pipeline-engine: standard output cannot be written: No space left on device\n")


def test_a_job_that_can_have_no_result_is_warned_of(daemon: DaemonProcess, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(GOOD, encoding="utf-8")
    for command in (("submit", "--follow"), ("run",)):
        done = call(daemon, *command, str(tmp_path / "p.yaml"))
        assert (done.returncode, done.stdout) == (0, "")
        assert "pipeline-engine: warning: no step has export: true, so there is no result\n" in done.stderr


def test_a_job_without_the_sources_that_it_splits_is_warned_of(daemon: DaemonProcess) -> None:
    words = "warning: there are no sources (--source), so these steps make no items: each\n"
    for command in (("submit", "words.v1"), ("run", "words.v1")):
        assert words in call(daemon, *command).stderr
        source = f"--source={daemon.home / 'config.toml'}"
        assert "warning" not in call(daemon, *command, source).stderr


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (("-", "log:x=-"), "standard input (-) can be only one source"),
        (("",), "'' names no file"),
        (("note:x=",), "'note:x=' names no file"),
    ],
)
def test_sources_that_cannot_be_read_are_refused(daemon: DaemonProcess, sources: tuple[str, ...], words: str) -> None:
    for command in ("run", "submit"):
        done = call(daemon, command, "words.v1", *(f"--source={source}" for source in sources))
        assert (done.returncode, words in done.stderr) == (2, True)


def test_a_command_that_is_misspelt_is_told_with_the_near_one(daemon: DaemonProcess) -> None:
    done = call(daemon, "rnu", "first.yaml")
    assert (done.returncode, "No such command 'rnu'. Did you mean 'run'?" in done.stderr) == (2, True)


def test_https_is_told_not_to_be_the_daemons(daemon: DaemonProcess) -> None:
    done = call(daemon, "jobs", "list", "--url", daemon.url.replace("http:", "https:"))
    assert (done.returncode, "the daemon itself speaks plain http" in done.stderr) == (3, True)


def test_an_export_that_cannot_be_written_names_the_file(daemon: DaemonProcess, tmp_path: Path) -> None:
    done = call(daemon, "export", "-o", str(tmp_path / "none" / "x"))
    assert (done.returncode, f"{tmp_path / 'none' / 'x'}: " in done.stderr) == (2, True)
