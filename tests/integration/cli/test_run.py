"""`pipeline-engine run` as a process: results, progress, exit codes, signals."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "pipeline_engine"]
GREETING = """
type: greeting.v1
steps:
  - id: count
    name: Count
    kind: reduce
    config: {reduce: template, template: "{{ options.word }} {{ sources | length }}"}
    export: true
"""
TOOLS = """
[[providers]]
id = "shell"
kind = "local_tool"
[providers.extra]
command = ["sh", "-c", "{{ options.script }}"]
sandbox = false
grace_s = 0.3
"""
SHELL = """
type: shell.v1
steps:
  - {id: t, kind: custom, provider_profile_id: shell, export: true}
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "greeting.yaml").write_text(GREETING, encoding="utf-8")
    (tmp_path / "shell.yaml").write_text(SHELL, encoding="utf-8")
    (tmp_path / "tools.toml").write_text(TOOLS, encoding="utf-8")
    (tmp_path / "in.txt").write_text("hello\n", encoding="utf-8")
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CONFIG_HOME": str(home / "xdg"), "TMPDIR": str(home)}


def run(home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "run", *arguments],
        cwd=home,
        env=environment(home) | more,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=30,
        check=False,
    )


def test_the_result_goes_to_stdout_and_progress_to_stderr(home: Path) -> None:
    done = run(home, "greeting.yaml", "--source", "note:in=in.txt", "--option", "word=hi")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hi 1\n", "Count: success\n")
    done = run(home, "greeting.yaml", "--option", "word=[1]", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1] 0\n", "")


def test_a_directory_of_its_name_hides_no_pipeline(home: Path) -> None:
    (home / "greeting.v1").mkdir()
    known = home / "known"
    known.mkdir()
    (home / "greeting.yaml").rename(known / "greeting.yaml")
    done = run(home, "greeting.v1", "--option", "word=hi", "--quiet", PIPELINE_ENGINE_PIPELINES_DIR=str(known))
    assert (done.returncode, done.stdout, done.stderr) == (0, "hi 0\n", "")
    done = run(home, "./greeting.v1")
    assert (done.returncode, done.stderr) == (2, "pipeline-engine: greeting.v1: cannot be read: Is a directory\n")


def test_an_option_that_nothing_reads_is_warned_of(home: Path) -> None:
    done = run(home, "greeting.yaml", "--option", "word=hi", "--option", "wrod=ho", "--json")
    assert (done.returncode, json.loads(done.stdout)["job"]["status"]) == (0, "succeeded")
    words = "warning: nothing in this pipeline reads the option 'wrod'; did you mean 'word'? known: max_tokens, word\n"
    assert words in done.stderr
    assert "'word';" not in done.stderr


def test_an_option_that_the_schema_rules_out_is_an_error(home: Path) -> None:
    schema = "options_schema: {properties: {word: {type: string}}, additionalProperties: false}\n"
    (home / "strict.yaml").write_text(GREETING + schema, encoding="utf-8")
    done = run(home, "strict.yaml", "--option", "word=hi", "--option", "wrod=ho")
    assert (done.returncode, "input.options" in done.stderr, "'wrod'" in done.stderr) == (2, True, True)


def test_an_option_that_the_schema_calls_a_text_is_one(home: Path) -> None:
    (home / "text.yaml").write_text(
        GREETING + "options_schema: {properties: {word: {type: string}}}\n", encoding="utf-8"
    )
    assert run(home, "text.yaml", "--option", "word=1.10", "--quiet").stdout == "1.10 0\n"
    schema = "options_schema: {properties: {word: {allOf: [{type: string}]}}}\n"
    (home / "hidden.yaml").write_text(GREETING + schema, encoding="utf-8")
    done = run(home, "hidden.yaml", "--option", "word=2024")
    assert done.returncode == 2
    assert done.stderr.endswith("""2024 is not of type 'string'; as a text it is written -o 'word="2024"'\n""")


def test_json_prints_the_job_and_nothing_else(home: Path) -> None:
    done = run(home, "greeting.yaml", "--source", "note:in=in.txt", "--option", "word=hi", "--json")
    job = json.loads(done.stdout)["job"]
    assert job["status"] == "succeeded"
    assert job["input"]["sources"] == [{"kind": "note", "label": "in", "content": "hello\n", "metadata": {}}]
    assert job["result"]["items"][0]["data"]["text"] == "hi 1"


def test_a_dry_run_calls_no_tool(home: Path) -> None:
    done = run(home, "shell.yaml", "--config", "tools.toml", "--dry-run", "-s", "in.txt", "-o", "script=touch made")
    assert done.returncode == 0
    assert "hello" in done.stdout
    assert not (home / "made").exists()


def test_a_failed_job_ends_with_1_and_says_why(home: Path) -> None:
    done = run(home, "shell.yaml", "--config", "tools.toml", "--option", "script=echo out; echo oops >&2; exit 3")
    assert done.returncode == 1
    assert "tool_failed" in done.stderr
    assert "oops" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.yaml"], "missing.yaml: there is no such file"),
        (["no.such.type"], "there is no pipeline 'no.such.type'"),
        (["bad.yaml"], "bad.yaml: line 3: steps[0].kind: 'magic'"),
        (["greeting.yaml", "--source", "note:x=absent.txt"], "cannot read absent.txt"),
        (["greeting.yaml", "--option", "word"], "'word' is not NAME=VALUE"),
        (["greeting.yaml", "--config", "absent.toml"], "absent.toml"),
        (["--bogus"], "No such option"),
    ],
)
def test_usage_and_bad_files_end_with_2_and_a_message(home: Path, arguments: list[str], words: str) -> None:
    (home / "bad.yaml").write_text("type: x\nsteps:\n  - {id: a, kind: magic}\n", encoding="utf-8")
    done = run(home, *arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_standard_input_is_a_source_and_bytes_survive(home: Path) -> None:
    (home / "echo.yaml").write_text(
        "type: e\nsteps: [{id: m, kind: map, config: {map: identity}, export: true}]\n", encoding="utf-8"
    )
    text = "a\u2028b\x0bc {{ 7 * 7 }} 日本 \U0001f600\r\nend"
    done = subprocess.run(
        [*COMMAND, "run", "echo.yaml", "-s", "log:stdin=-", "-q"],
        cwd=home,
        env=environment(home),
        input=text.encode(),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == text.encode() + b"\n"


@pytest.mark.parametrize(
    "locale",
    [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"LANG": "xx_XX.latin1"}],
)
def test_no_locale_changes_what_is_read_or_printed(home: Path, locale: dict[str, str]) -> None:
    (home / "p.yaml").write_text(
        "type: p\nsteps: [{id: m, kind: map, config: {map: template, template: 'Café – 日本 🦀'}, export: true}]\n",
        encoding="utf-8",
    )
    done = run(home, "p.yaml", **locale)
    assert (done.returncode, done.stdout) == (0, "Café – 日本 🦀\n")


def test_control_sequences_of_a_tool_do_not_reach_a_terminal(home: Path) -> None:
    main, secondary = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "run", "shell.yaml", "--config", "tools.toml", "-o", r"script=printf '\033]0;owned\007\033[31mred'"],
        cwd=home,
        env=environment(home) | {"TERM": "xterm"},
        stdout=secondary,
        stderr=secondary,
        stdin=secondary,
    )
    os.close(secondary)
    shown = b"".join(read_terminal(main))
    assert process.wait(30) == 0
    assert b"red" in shown
    assert b"\x1b]0;owned" not in shown
    assert b"\x1b[31mred" not in shown


def read_terminal(main: int) -> Iterator[bytes]:
    with suppress(OSError):
        while data := os.read(main, 4096):
            yield data
    os.close(main)


@pytest.fixture
def hangups() -> Iterator[None]:
    """Commands are started as from a terminal, though these tests may run under nohup, which all would inherit."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def children_of(marker: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            text = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if marker in text and "pipeline_engine" not in text:
                found.append(text)
    return found


def wait_until(check: object, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not check():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cancels_the_job_and_leaves_nothing(home: Path, which: signal.Signals) -> None:
    marker = f"3600.{os.getpid()}{int(which)}"
    script = f"touch {home}/started; (trap '' TERM; sleep {marker}) & sleep {marker}"
    process = subprocess.Popen(
        [*COMMAND, "run", "shell.yaml", "--config", "tools.toml", "--json", "-o", f"script={script}"],
        cwd=home,
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    wait_until((home / "started").exists)
    process.send_signal(which)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    job = json.loads(out)["job"]
    assert job["status"] == "cancelled"
    assert [execution["status"] for execution in job["step_executions"]] == ["cancelled"]
    assert children_of(marker) == []
    assert not list(home.glob("pipeline-engine-*"))


@pytest.mark.usefixtures("hangups")
def test_a_terminal_that_is_closed_cancels_the_job_and_leaves_nothing(home: Path) -> None:
    main, secondary = pty.openpty()
    script = f"trap 'touch {home}/asked; exit' TERM; touch {home}/started; while :; do sleep 0.05; done"
    process = subprocess.Popen(
        [*COMMAND, "run", "shell.yaml", "--config", "tools.toml", "-o", f"script={script}"],
        cwd=home,
        env=environment(home) | {"TERM": "xterm"},
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
    )
    os.close(secondary)
    wait_until((home / "started").exists)
    os.close(main)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)  # the shell tells of it too
    assert process.wait(20) == 130
    assert (home / "asked").exists()  # it was not ended at once
    assert not list(home.glob("pipeline-engine-*"))


def test_a_job_that_shall_outlive_the_terminal_does(home: Path) -> None:
    script = f"touch {home}/started; while [ ! -e {home}/told ]; do sleep 0.05; done; echo done"
    arguments = ["run", "shell.yaml", "--config", "tools.toml", "-o", f"script={script}"]
    process = subprocess.Popen(
        ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *COMMAND, *arguments],
        cwd=home,
        env=environment(home),
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    wait_until((home / "started").exists)
    process.send_signal(signal.SIGHUP)
    (home / "told").touch()
    assert (process.communicate(timeout=20)[0], process.returncode) == ("done\n", 0)


def test_a_second_ctrl_c_ends_the_program_at_once(home: Path) -> None:
    (home / "patient.toml").write_text(TOOLS.replace("grace_s = 0.3", "grace_s = 60"), encoding="utf-8")
    marker = f"3600.{os.getpid()}"
    script = f"trap 'touch {home}/asked' TERM; touch {home}/started; sleep {marker} & while :; do sleep 0.05; done"
    process = subprocess.Popen(
        [*COMMAND, "run", "shell.yaml", "--config", "patient.toml", "-o", f"script={script}"],
        cwd=home,
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    wait_until((home / "started").exists)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: (home / "asked").exists() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)  # seconds; the tool has a minute
    assert (process.returncode, out, err) == (130, "", "pipeline-engine: interrupted\n")
    wait_until(lambda: children_of(marker) == [])
    assert [path for path in home.glob("pipeline-engine-*") if "tool" not in path.name] == []


def test_a_handler_that_fails_is_told_with_its_place_and_its_traceback(home: Path) -> None:
    (home / "hh.py").write_text('def boom(item):\n    x = {}\n    return x["nokey"]\n', encoding="utf-8")
    (home / "handlers.toml").write_text('[handlers]\nboom = "hh:boom"\n', encoding="utf-8")
    (home / "boom.yaml").write_text(
        "type: b\nsteps: [{id: s, kind: custom, config: {handler: boom}}]\n", encoding="utf-8"
    )
    done = run(home, "boom.yaml", "--config", "handlers.toml", PYTHONPATH=str(home))
    assert done.returncode == 1
    assert "job failed in s: tool_failed: the handler raised KeyError: 'nokey' (hh.py:3)\n" in done.stderr
    assert done.stderr.count('    return x["nokey"]\n') == 1


def test_what_a_handler_prints_goes_to_stderr(home: Path) -> None:
    (home / "hh.py").write_text(
        "import os, subprocess\nprint('imported')\n"
        "def talk(item):\n    print('printed')\n    subprocess.run(['echo', 'echoed'])\n    os.write(1, b'written')\n"
        "    return 'made'\n",
        encoding="utf-8",
    )
    (home / "handlers.toml").write_text('[handlers]\ntalk = "hh:talk"\n', encoding="utf-8")
    (home / "talk.yaml").write_text(
        "type: t\nsteps: [{id: s, kind: custom, export: true, config: {handler: talk}}]\n", encoding="utf-8"
    )
    arguments = ["talk.yaml", "--config", "handlers.toml"]
    done = run(home, *arguments, PYTHONPATH=str(home))
    assert (done.returncode, done.stdout) == (0, "made\n")
    assert all(words in done.stderr for words in ("imported", "printed", "echoed", "written"))
    done = run(home, *arguments, "--json", "--quiet", PYTHONPATH=str(home))
    assert json.loads(done.stdout)["job"]["result"]["items"][0]["data"]["text"] == "made"


def test_after_kill_9_a_run_on_the_same_data_goes_on(home: Path) -> None:
    """What was finished is not done again; the log of the job has no gap."""
    (home / "many.yaml").write_text(
        "type: many.v1\nsteps:\n  - {id: f, kind: map, mode: fanout, max_concurrency: 1, provider_profile_id: shell,"
        " export: true, config: {split: {by: lines}}}\n",
        encoding="utf-8",
    )
    (home / "lines.txt").write_text("".join(f"{n}\n" for n in range(8)), encoding="utf-8")
    script = f"read x; echo $x >> {home}/ran; [ $x != 4 ] || sleep 1; echo got $x"
    arguments = [
        "many.yaml",
        "--config",
        "tools.toml",
        "--data-dir",
        "data",
        "-s",
        "lines.txt",
        "-o",
        f"script={script}",
    ]
    process = subprocess.Popen(
        [*COMMAND, "run", *arguments],
        cwd=home,
        env=environment(home),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: (home / "ran").exists() and "4" in (home / "ran").read_text(encoding="utf-8"))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    done = run(home, "greeting.yaml", "--config", "tools.toml", "--data-dir", "data", "-o", "word=x", "-q")
    assert done.returncode == 0, done.stderr
    inspect = (
        "import json, sys; from pathlib import Path\n"
        "from pipeline_engine.store.sqlite import open_sqlite_store\n"
        "from pipeline_engine.store.base import JobFilter\n"
        "store = open_sqlite_store(Path('data/engine.db'))\n"
        "job = json.loads(store.list_jobs(JobFilter())[-1].job)\n"
        "events = [json.loads(e.line) for e in store.read_events(job['id'], limit=10000)]\n"
        "print(json.dumps([job, events]))"
    )

    def state() -> tuple[dict[str, object], list[dict[str, object]]]:
        out = subprocess.run([sys.executable, "-c", inspect], cwd=home, capture_output=True, check=True).stdout
        job, events = json.loads(out)
        return job, events

    job, events = state()
    for _ in range(8):  # each run gives the unfinished job as long as its own job takes
        if job["status"] == "succeeded":
            break
        run(home, "shell.yaml", "--config", "tools.toml", "--data-dir", "data", "-o", "script=sleep 2", "-q")
        job, events = state()
    assert job["status"] == "succeeded"
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["event"] for event in events].count("job_queued") == 1
    ran = (home / "ran").read_text(encoding="utf-8").split()
    assert [ran.count(str(n)) for n in range(4)] == [1, 1, 1, 1]
    assert ran.count("4") >= 2


def test_help_is_quick_to_say_what_there_is(home: Path) -> None:
    done = subprocess.run([*COMMAND, "--help"], cwd=home, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0
    assert b"run" in done.stdout
    assert b"pipelines" in done.stdout


def closing(home: Path, closed: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, *arguments],
        cwd=home,
        env=environment(home),
        input="one\ntwo\n",
        capture_output=True,
        encoding="utf-8",
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("closed", "code", "words"),
    [
        (">&-", 1, "pipeline-engine: standard output is closed\n"),
        ("2>&-", 0, ""),
        ("<&-", 2, "standard input (-) is closed\n"),
        (">&- 2>&- <&-", 2, ""),
    ],
)
def test_a_closed_standard_stream_is_no_success_where_it_is_needed(
    home: Path, closed: str, code: int, words: str
) -> None:
    done = closing(home, closed, "run", "greeting.yaml", "--source", "note:in=-", "--option", "word=hi")
    assert (done.returncode, done.stdout) == (code, "" if code else "hi 1\n")
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith(words)


def test_closed_standard_streams_that_are_not_needed_do_no_harm(home: Path) -> None:
    done = closing(home, "<&- 2>&-", "run", "greeting.yaml", "--option", "word=hi")
    assert (done.returncode, done.stdout) == (0, "hi 0\n")
    done = closing(home, ">&-", "run", "absent.yaml")
    assert (done.returncode, done.stderr) == (2, "pipeline-engine: absent.yaml: there is no such file\n")


@pytest.mark.parametrize("arguments", [("import", "-", "--data-dir", "data"), ("mcp",)], ids=["import", "mcp"])
def test_what_reads_a_closed_standard_input_says_so(home: Path, arguments: tuple[str, ...]) -> None:
    done = closing(home, "<&-", *arguments)
    assert (done.returncode, done.stdout, "is closed" in done.stderr) == (2, "", True)
    assert "Traceback" not in done.stderr
