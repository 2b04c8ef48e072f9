"""`follow` and `jobs`, as processes against one real daemon."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.command_setting import COMMAND, GOOD, call, ok, ok_json, shell_job
from tests.daemon_process import PATIENCE, DaemonProcess

from pipeline_engine_sdk import PipelineEngineClient


def test_follow_shows_a_job_and_ctrl_c_leaves_it_alone(daemon: DaemonProcess, client: PipelineEngineClient) -> None:
    job_id = shell_job(client, "echo out")
    assert ok(daemon, "follow", job_id) == "out\n"
    lines = [json.loads(line) for line in ok(daemon, "follow", job_id, "--json", "--after-seq", "2").splitlines()]
    assert [line["seq"] for line in lines] == list(range(3, lines[-1]["seq"] + 1))
    slow = shell_job(client, "sleep 60")
    process = subprocess.Popen(
        [*COMMAND, "follow", slow, "--json"], env=daemon.environment, stdout=subprocess.PIPE, encoding="utf-8"
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event"] == "job_queued"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert (process.returncode, client.get_job(slow).is_final) == (130, False)
    client.cancel_job(slow)


def test_jobs_are_shown_cancelled_rerun_and_deleted(daemon: DaemonProcess, client: PipelineEngineClient) -> None:
    job_id = ok_json(daemon, "submit", "words.v1", "--follow")["job"]["id"]
    shown = ok(daemon, "jobs", "show", job_id)
    assert "succeeded" in shown
    assert "0 sources" in shown
    assert job_id in ok(daemon, "jobs", "list", "--limit", "3", "--type", "words.v1")
    rerun = ok(daemon, "jobs", "rerun", job_id, "--reuse-upstream").strip()
    assert client.wait_job(rerun).parent_job_id == job_id
    ok(daemon, "jobs", "delete", job_id, rerun)
    gone = call(daemon, "jobs", "show", job_id)
    assert (gone.returncode, job_id in gone.stderr) == (2, True)
    slow = shell_job(client, "sleep 60")
    assert slow in ok(daemon, "jobs", "top")
    assert ok_json(daemon, "jobs", "cancel", slow, "--reason", "why not")["job"]["status"] == "cancelled"
    error = client.get_job(slow).error
    assert error is not None
    assert "why not" in error.message


def test_what_went_wrong_within_a_step_is_shown(daemon: DaemonProcess, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "type: p\nsteps:\n- {id: j, kind: map, mode: fanout, on_item_error: skip, output_format: json_strict, export: true,"
        ' config: {map: template, template: "{{ source.content }}"}}\n',
        encoding="utf-8",
    )
    (tmp_path / "good").write_text("[1]", encoding="utf-8")
    (tmp_path / "bad").write_text("[" * 300, encoding="utf-8")
    sources = [f"--source={tmp_path / name}" for name in ("good", "bad")]
    job_id = ok(daemon, "submit", str(tmp_path / "p.yaml"), *sources).strip()
    call(daemon, "follow", job_id)
    shown = ok(daemon, "jobs", "show", job_id)
    assert "  1 item left out\n" in shown
    [line] = [line for line in shown.splitlines() if line.startswith("  j-1: output_invalid: ")]
    assert line.endswith(f"; its text: '{'[' * 200}' … (300 characters)")


def test_what_a_cancelled_job_shows(daemon: DaemonProcess, client: PipelineEngineClient) -> None:
    job_id = shell_job(client, "sleep 60")
    ok(daemon, "jobs", "cancel", job_id)
    shown = call(daemon, "jobs", "show", job_id)
    assert "tokens" not in shown.stdout  # nobody has counted any
    assert "job cancelled: by `jobs cancel`" in shown.stderr
    followed = call(daemon, "follow", job_id)
    assert followed.returncode == 130
    assert f"pipeline-engine jobs rerun {job_id} --reuse-upstream" in followed.stderr


def test_what_a_failed_job_names_is_what_can_help(daemon: DaemonProcess, tmp_path: Path) -> None:
    script = "--option=script=exit 3"
    hint = call(daemon, "submit", "shell.v1", script, "--follow", "--url", daemon.url).stderr.splitlines()[-1]
    job_id = ok_json(daemon, "jobs", "list", "-n", "1")["jobs"][0]["id"]
    shown, _, again = hint.removeprefix("pipeline-engine: what there is: ").partition("; again: ")
    assert shown == f"pipeline-engine jobs show {job_id} --url {daemon.url}"
    assert again == f"pipeline-engine jobs rerun {job_id} --reuse-upstream --url {daemon.url}"
    file = tmp_path / "p.yaml"
    file.write_text(GOOD.replace("identity", 'template, template: "{{ options.x }}"'), encoding="utf-8")
    failed = call(daemon, "submit", str(file), "--follow")
    assert (failed.returncode, "template_error" in failed.stderr) == (1, True)
    assert "pipeline-engine jobs show job_" in failed.stderr
    assert "again" not in failed.stderr


def test_a_rerun_has_the_input_of_its_parent_but_for_what_is_given(daemon: DaemonProcess, tmp_path: Path) -> None:
    file = tmp_path / "echo.yaml"
    schema = "options_schema: {properties: {v: {type: string}, n: {type: integer}}}\n"
    file.write_text(GOOD.replace("put.v1", "echo.v1") + schema, encoding="utf-8")
    ok(daemon, "pipelines", "put", str(file))
    (tmp_path / "new").write_text("new", encoding="utf-8")
    (tmp_path / "bytes").write_bytes(b"\0\1")
    old = [f"--source=log:{name}={tmp_path / name}" for name in ("echo.yaml", "bytes")]
    parent = ok_json(daemon, "submit", "echo.v1", *old, "-o", "v=1.0", "-o", "n=1")["job"]

    def rerun_input(*arguments: str) -> Any:
        return ok_json(daemon, "jobs", "rerun", parent["id"], *arguments)["job"]["input"]

    assert rerun_input() == parent["input"]
    changed = rerun_input("--option", "v=1.10")
    assert changed == parent["input"] | {"options": {"v": "1.10", "n": 1}}
    changed = rerun_input("-s", f"note:x={tmp_path / 'new'}")
    assert [source["label"] for source in changed["sources"]] == ["x"]
    assert changed["options"] == {"v": "1.0", "n": 1}
    parent = ok_json(daemon, "submit", "echo.v1", *old)["job"]  # which has no options
    assert rerun_input("-o", "n=2") == parent["input"] | {"options": {"n": 2}}
    assert "options" not in rerun_input("-s", f"note:x={tmp_path / 'new'}")
    refused = call(daemon, "jobs", "rerun", parent["id"], "-o", "n=many")
    assert (refused.returncode, "'many' is not of type 'integer'" in refused.stderr) == (2, True)


def test_a_job_is_named_by_the_end_of_its_id(daemon: DaemonProcess, client: PipelineEngineClient) -> None:
    job_id = shell_job(client, "echo out")
    end = job_id[-8:]
    assert ok(daemon, "follow", "@last") == "out\n"
    assert ok(daemon, "jobs", "show", end).startswith(job_id)
    assert ok(daemon, "jobs", "cancel", end) == f"{job_id}  succeeded\n"
    assert ok_json(daemon, "jobs", "rerun", end)["job"]["parent_job_id"] == job_id
    missing = call(daemon, "jobs", "delete", end, "zzzzzz")
    assert (missing.returncode, "begins or ends with 'zzzzzz'" in missing.stderr) == (2, True)
    assert ok(daemon, "jobs", "delete", end) == f"deleted {job_id}\n"
    assert call(daemon, "jobs", "show", job_id).returncode == 2
