"""The daemon as a process: how it starts, serves, reloads and stops."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

PATIENCE = 20.0  # seconds; nothing here takes more than a fraction of it
SLEEPER = '[[providers]]\nid = "sleeper"\nkind = "local_tool"\nextra = { command = ["sleep", "60"], grace_s = 0.1 }\n'
MAP = {"id": "m", "kind": "map", "config": {"map": "identity"}, "export": True}
SLEEP = {"id": "t", "kind": "custom", "provider_profile_id": "sleeper"}


class Daemon:
    """A process with files of its own. `start` returns when it is ready."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.config = home / "config.toml"
        self.config.write_text("", encoding="utf-8")
        (home / "pipelines").mkdir()
        self.log = home / "daemon.log"
        self.variables = {"PIPELINE_ENGINE_ADDR": "127.0.0.1:0"}
        self.command = [sys.executable, "-m", "pipeline_engine"]
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(trust_env=False, timeout=PATIENCE)

    def launch(self, *arguments: str) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
        environment = {
            **kept,
            "XDG_CONFIG_HOME": str(self.home / "xdg"),
            "PIPELINE_ENGINE_CONFIG": str(self.config),
            "PIPELINE_ENGINE_DATA_DIR": str(self.home / "data"),
            "PIPELINE_ENGINE_PIPELINES_DIR": str(self.home / "pipelines"),
            **self.variables,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self.process

    def start(self, *arguments: str) -> Daemon:
        before = len(self.text) if self.log.exists() else 0
        process = self.launch(*arguments)
        self.until(lambda: "listening on" in self.text[before:] or process.poll() is not None)
        found = re.findall(r"listening on (http://\S+)", self.text[before:])
        assert found, self.text
        self.client.base_url = httpx.URL(found[-1])
        return self

    def until(self, check: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not check():
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def stop(self) -> int:
        self.send(signal.SIGTERM)
        return self.wait()

    def submit(self, *steps: dict[str, Any]) -> str:
        answer = self.client.post("/v1/jobs", json={"pipeline": {"type": "t.v1", "steps": steps}})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["job"]["id"])

    def status_of(self, job_id: str) -> str:
        return str(self.client.get(f"/v1/jobs/{job_id}").json()["job"]["status"])

    def close(self) -> None:
        self.client.close()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path)
    yield daemon
    daemon.close()


def test_it_serves_until_it_is_told_to_stop(daemon: Daemon) -> None:
    daemon.start("serve")
    assert daemon.client.get("/health/ready").status_code == 200
    job_id = daemon.submit(MAP)
    daemon.until(lambda: daemon.status_of(job_id) == "succeeded")
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.text
    assert re.search(rf"job {job_id} of 't\.v1' succeeded after \d+\.\d s ", daemon.text)
    assert "stopping " in daemon.text
    assert "the next start" not in daemon.text
    daemon.start("serve")
    assert daemon.status_of(job_id) == "succeeded"


def test_without_a_command_and_a_terminal_it_serves(daemon: Daemon) -> None:
    daemon.start()
    assert daemon.client.get("/health").status_code == 200
    daemon.send(signal.SIGINT)
    assert daemon.wait() == 0


def test_without_a_command_on_a_terminal_it_helps() -> None:
    leader, follower = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline_engine"],
            stdin=follower,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    finally:
        os.close(leader)
        os.close(follower)
    assert done.returncode == 0
    assert b"Usage: pipeline-engine" in done.stdout


def test_a_port_in_use_is_told_in_words(daemon: Daemon) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        daemon.launch("serve", "--addr", f"127.0.0.1:{port}")
        assert daemon.wait() == 1
    words = f"pipeline-engine: cannot listen on http://127.0.0.1:{port}: address already in use"
    assert daemon.text.endswith(f"{words}; stop who listens there, or choose another address with --addr\n")
    assert "Traceback" not in daemon.text


def test_a_data_directory_in_use_is_told_in_words(daemon: Daemon) -> None:
    daemon.start("serve")
    first = daemon.process
    assert first is not None
    second = daemon.launch("serve")
    assert second.wait(PATIENCE) == 1
    assert "in use" in daemon.text
    assert "Traceback" not in daemon.text
    assert daemon.client.get("/health/ready").status_code == 200
    daemon.process = first


@pytest.mark.parametrize(
    ("text", "variables", "words"),
    [
        ("[limits]\nmax_running_job = 1\n", {}, "config.toml: line 2: limits.max_running_job: unknown key"),
        ("[limits\n", {}, "config.toml"),
        ("", {"PIPELINE_ENGINE_ADDR": "0.0.0.0:0"}, "PIPELINE_ENGINE_API_KEY"),
        ("", {"PIPELINE_ENGINE_LOG_LEVEL": "loud"}, "PIPELINE_ENGINE_LOG_LEVEL"),
    ],
)
def test_a_bad_configuration_is_told_with_its_place(
    daemon: Daemon, text: str, variables: dict[str, str], words: str
) -> None:
    daemon.config.write_text(text, encoding="utf-8")
    daemon.variables |= variables
    daemon.launch("serve")
    assert daemon.wait() == 2
    assert words in daemon.text
    assert "Traceback" not in daemon.text


def test_a_service_manager_is_told_of_a_bad_configuration_with_an_exit_code_of_its_own(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(daemon.home / "notify"))
        daemon.variables["NOTIFY_SOCKET"] = str(daemon.home / "notify")
        daemon.config.write_text("[limits\n", encoding="utf-8")
        daemon.launch("serve")
        assert daemon.wait() == 78
        assert manager.recv(4096).startswith(b"STATUS=bad configuration: ")
    assert "Traceback" not in daemon.text


def test_a_service_manager_is_told_how_it_does(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(daemon.home / "notify"))
        manager.settimeout(PATIENCE)
        daemon.variables |= {"NOTIFY_SOCKET": str(daemon.home / "notify"), "WATCHDOG_USEC": "300000"}
        daemon.start("serve")
        assert manager.recv(4096) == b"READY=1\nSTATUS=running"
        assert {manager.recv(4096) for _ in range(3)} == {b"WATCHDOG=1"}
        daemon.send(signal.SIGHUP)
        told: list[bytes] = []
        while not told or not told[-1].startswith(b"READY=1"):
            told.append(manager.recv(4096))
        assert any(one.startswith(b"RELOADING=1\nMONOTONIC_USEC=") for one in told)
        assert daemon.stop() == 0
        while not manager.recv(4096).startswith(b"STOPPING=1"):
            pass  # the watchdog is fed until the end; recv has its time limit


def test_a_unix_socket_is_there_while_it_runs(daemon: Daemon) -> None:
    path = daemon.home / "engine.sock"
    daemon.variables["PIPELINE_ENGINE_ADDR"] = f"127.0.0.1:0,unix:{path}"
    daemon.start("serve")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as client:
        assert client.get("/health").json()["status"] == "ok"
    assert daemon.stop() == 0
    assert not path.exists()


def test_who_may_call_is_checked(daemon: Daemon) -> None:
    daemon.variables["PIPELINE_ENGINE_API_KEY"] = "k-1"
    daemon.start("serve")
    assert daemon.client.get("/v1/jobs").status_code == 401
    assert daemon.client.get("/v1/jobs", headers={"Authorization": "Bearer k-1"}).status_code == 200
    assert daemon.client.get("/health", headers={"Host": "evil.example"}).status_code == 403
    assert "k-1" not in daemon.text


def test_what_still_runs_after_the_grace_goes_on_after_the_next_start(daemon: Daemon) -> None:
    daemon.config.write_text(SLEEPER + "[limits]\nshutdown_grace_s = 0.2\n", encoding="utf-8")
    daemon.start("serve")
    job_id = daemon.submit(SLEEP)
    daemon.until(lambda: daemon.status_of(job_id) == "running")
    with daemon.client.stream("GET", f"/v1/jobs/{job_id}/stream") as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines))["event"] == "job_queued"
        daemon.send(signal.SIGTERM)
        assert all(json.loads(line)["event"] != "stream_finished" for line in lines)
    assert daemon.wait() == 0
    assert "stopping: waiting up to 0.2 s for 1 job; a second signal does not wait" in daemon.text
    assert "1 job to go on after the next start" in daemon.text
    daemon.start("serve")
    assert "resuming 1 running" in daemon.text
    assert daemon.status_of(job_id) == "running"
    daemon.until(lambda: daemon.client.get(f"/v1/jobs/{job_id}").json()["job"]["restarts"] == 1)
    job = daemon.client.post(f"/v1/jobs/{job_id}/cancel").json()["job"]
    assert (job["status"], job["restarts"]) == ("cancelled", 1)


def test_while_it_drains_it_answers_but_takes_no_jobs_and_a_second_signal_ends_it(daemon: Daemon) -> None:
    daemon.config.write_text(SLEEPER + "[limits]\nshutdown_grace_s = 300\n", encoding="utf-8")
    daemon.start("serve")
    job_id = daemon.submit(SLEEP)
    daemon.until(lambda: daemon.status_of(job_id) == "running")
    daemon.send(signal.SIGTERM)
    daemon.until(lambda: daemon.client.get("/health/ready").status_code == 503)
    refused = daemon.client.post("/v1/jobs", json={"pipeline": {"type": "t.v1", "steps": [MAP]}})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
    assert daemon.client.get("/health").status_code == 200
    assert daemon.status_of(job_id) == "running"
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0
    assert "Traceback" not in daemon.text


def test_tools_that_will_not_end_do_not_hold_it_up_whatever_their_grace(daemon: Daemon) -> None:
    stubborn = "trap '' TERM; echo begun; while :; do sleep 1; done"
    daemon.config.write_text(
        '[limits]\nshutdown_grace_s = 0.1\n[[providers]]\nid = "sleeper"\nkind = "local_tool"\n'
        f'[providers.extra]\ncommand = ["sh", "-c", "{stubborn}"]\ngrace_s = 600\n',
        encoding="utf-8",
    )
    daemon.start("serve")
    jobs = [daemon.submit(SLEEP), daemon.submit(SLEEP)]
    for job_id in jobs:
        daemon.until(lambda: "begun" in daemon.client.get(f"/v1/jobs/{job_id}/events").text)  # noqa: B023 - used at once
    with suppress(httpx.ReadTimeout):
        daemon.client.post(f"/v1/jobs/{jobs[0]}/cancel", timeout=0.2)
    assert daemon.stop() == 0
    assert "1 job to go on after the next start" in daemon.text
    assert "Traceback" not in daemon.text


def test_a_hangup_reads_the_configuration_again(daemon: Daemon) -> None:
    daemon.start("serve")
    limits = "[limits]\nmax_items = 3\nmax_body_bytes = 1\n"
    daemon.config.write_text('log_level = "debug"\n' + limits + SLEEPER, encoding="utf-8")
    daemon.send(signal.SIGHUP)
    daemon.until(lambda: "were read again" in daemon.text)
    assert "sleeper" in daemon.client.get("/v1/config/providers").text
    shown = daemon.client.post("/v1/config/engine", json={}).json()
    assert shown["log_level"] == "debug"
    assert shown["limits.max_items"] == 3
    assert shown["limits.max_body_bytes"] == 32 * 1024 * 1024


def test_a_hangup_says_so_when_the_configuration_stays_as_it_was(daemon: Daemon) -> None:
    user_file = daemon.home / "xdg" / "pipeline-engine" / "config.toml"
    user_file.parent.mkdir(parents=True)
    user_file.write_text("", encoding="utf-8")
    daemon.start("serve")

    def complaints() -> int:
        return daemon.text.count(f"the configuration stays as it was: {user_file}: is gone")

    user_file.unlink()
    daemon.until(lambda: complaints() == 1)
    daemon.config.write_text(SLEEPER, encoding="utf-8")
    daemon.until(lambda: complaints() == 2)
    daemon.send(signal.SIGHUP)
    daemon.until(lambda: complaints() == 3)
    assert "sleeper" not in daemon.client.get("/v1/config/providers").text
    user_file.write_text("", encoding="utf-8")
    daemon.until(lambda: "the configuration can be used again" in daemon.text)
    assert "sleeper" in daemon.client.get("/v1/config/providers").text
    assert daemon.stop() == 0
    assert "the configuration and the definitions were read again" not in daemon.text


def test_hangups_at_the_start_do_not_end_it_and_none_is_lost(daemon: Daemon) -> None:
    process = daemon.launch("serve")
    blocked = f"/proc/{process.pid}/status"

    def is_blocked() -> bool:
        found = re.search(r"SigBlk:\s*(\w+)", Path(blocked).read_text(encoding="utf-8"))
        assert found is not None
        return bool(int(found[1], 16) & 1 << (signal.SIGHUP - 1))

    daemon.until(is_blocked)
    while is_blocked():
        daemon.send(signal.SIGHUP)
    daemon.until(lambda: "were read again" in daemon.text)
    assert daemon.stop() == 0


def test_signals_until_it_is_gone_do_not_make_a_clean_stop_another_end(daemon: Daemon) -> None:
    process = daemon.start("serve").process
    assert process is not None
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.002)  # seconds: a flood would show what Python makes of one, and not what the daemon does
    assert process.returncode == 0, daemon.text


def test_what_handlers_print_in_a_daemon_without_a_standard_output_goes_nowhere(daemon: Daemon) -> None:
    code = (
        "import os\n\ndef talk(item):\n    print('x' * 20000, flush=True)\n    os.write(1, b'y')\n    return 'made'\n"
    )
    (daemon.home / "hh.py").write_text(code, encoding="utf-8")
    daemon.config.write_text('[handlers]\ntalk = "hh:talk"\n', encoding="utf-8")
    daemon.variables["PYTHONPATH"] = str(daemon.home)
    daemon.command = ["sh", "-c", 'exec "$@" >&-', "sh", *daemon.command]
    daemon.start("serve")
    step = {"id": "a", "kind": "custom", "config": {"handler": "talk"}, "export": True}
    request = {"mode": "sync", "pipeline": {"type": "t.v1", "steps": [step]}}
    [item] = daemon.client.post("/v1/jobs", json=request).json()["job"]["result"]["items"]
    assert item["data"]["text"] == "made"


def test_tools_get_signals_as_they_are_by_default(daemon: Daemon) -> None:
    tool = SLEEPER.replace('["sleep", "60"]', '["grep", "^Sig[BI]", "/proc/self/status"]')
    daemon.config.write_text(tool, encoding="utf-8")
    daemon.start("serve")
    request = {"mode": "sync", "pipeline": {"type": "t.v1", "steps": [{**SLEEP, "export": True}]}}
    [item] = daemon.client.post("/v1/jobs", json=request).json()["job"]["result"]["items"]
    ignored = [int(line.split()[1], 16) & 1 << (signal.SIGHUP - 1) for line in item["data"]["text"].splitlines()]
    assert ignored == [0, 0]


def test_a_bad_definition_is_told_with_its_place_and_hides_no_other(daemon: Daemon) -> None:
    good = "type: good.v1\nsteps: [{id: a, kind: map, config: {map: identity}}]\n"
    (daemon.home / "pipelines" / "good.yaml").write_text(good, encoding="utf-8")
    (daemon.home / "pipelines" / "bad.yaml").write_text(
        "type: bad.v1\nsteps:\n  - {id: a, kind: x}\n", encoding="utf-8"
    )
    daemon.start("serve")
    assert "bad.yaml: line 3: steps[0].kind" in daemon.text
    known = daemon.client.get("/v1/config/pipelines").json()["pipelines"]
    assert [one["type"] for one in known] == ["good.v1"]


def test_it_may_have_as_many_files_open_as_the_system_lets_it(daemon: Daemon) -> None:
    daemon.command = ["sh", "-c", 'ulimit -Sn 64; exec "$@"', "sh", *daemon.command]
    daemon.start("serve")
    assert daemon.process is not None
    soft, hard = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
    assert soft == hard > 64


def test_connections_leave_files_for_jobs_where_few_may_be_open(daemon: Daemon) -> None:
    daemon.command = ["sh", "-c", 'ulimit -n 300; exec "$@"', "sh", *daemon.command]
    daemon.start("serve")
    assert "at most 150 connections instead of http.max_connections = 4096: only 300 files may be open" in daemon.text
    port = daemon.client.base_url.port
    assert port is not None
    with ExitStack() as opened:
        many = [opened.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(200)]
        many[-1].settimeout(PATIENCE)
        assert b" 503 " in many[-1].recv(1000)
        many[0].sendall(b"POST /v1/jobs HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n")
        body = json.dumps({"mode": "sync", "pipeline": {"type": "t.v1", "steps": [MAP]}}).encode()
        many[0].sendall(b"content-length: %d\r\n\r\n%b" % (len(body), body))
        many[0].settimeout(PATIENCE)
        assert b'"status":"succeeded"' in many[0].recv(100_000)


def test_an_idle_daemon_does_nothing(daemon: Daemon) -> None:
    daemon.start("serve")
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status")

    def switches() -> int:
        found = re.findall(r"ctxt_switches:\s+(\d+)", status.read_text(encoding="utf-8"))
        return sum(map(int, found))

    time.sleep(0.5)
    before = switches()
    time.sleep(1.0)
    assert switches() - before <= 3
