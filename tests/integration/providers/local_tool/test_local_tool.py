from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest
import trio
from tests.tool_setting import (
    MIB,
    SLEEP,
    Answer,
    fail,
    make_call,
    run,
    run_until,
    shell,
)

from pipeline_engine.errors import ErrorCode
from pipeline_engine.providers.base import Completion
from pipeline_engine.providers.local_tool import LocalToolProvider

ODD_BYTES = "Y2Fm6SD//iAAbWlkACDigiAbWzMxbXJlZBtbMG0NNTAlDTEwMCUNCvCfpoAK"
ODD_TEXT = "caf\ufffd \ufffd\ufffd \u0000mid\u0000 \ufffd \u001b[31mred\u001b[0m\r50%\r100%\r\n\N{CRAB}\n"


# --- input and output ---------------------------------------------------------------------------------------------


async def test_the_prompt_goes_in_and_the_answer_comes_out(provider: LocalToolProvider) -> None:
    answer = await run(provider, make_call("tr", "a-z", "A-Z", stdin="abc\ndéf"))
    assert answer.text == "ABC\nDéF"
    assert answer.completion == Completion(finish_reason="stop", warnings=[])


async def test_a_large_prompt_goes_through(provider: LocalToolProvider) -> None:
    text = "0123456789abcde\n" * 200_000
    assert (await run(provider, make_call("cat", stdin=text))).text == text


@pytest.mark.parametrize("script", ["exec 0<&-; echo done", "echo done", "head -c 1 >/dev/null; echo done"])
async def test_a_tool_may_ignore_its_input(provider: LocalToolProvider, script: str) -> None:
    assert (await run(provider, shell(script, stdin="y" * 2_000_000))).text == "done\n"


async def test_no_shell_reads_the_arguments(provider: LocalToolProvider) -> None:
    answer = await run(provider, make_call("echo", "$HOME; `id` {{ é }}"))
    assert answer.text == "$HOME; `id` {{ é }}\n"


async def test_output_is_seen_while_the_tool_runs(provider: LocalToolProvider, tmp_path: Path) -> None:
    # The tool goes on only after its partial line has been seen and what it waits for has been made.
    mark = tmp_path / "seen"
    with trio.fail_after(30):
        async with provider.stream(shell(f"printf 50%%; until test -e {mark}; do sleep 0.01; done; echo")) as lists:
            await run_until("50%", lists)
            mark.touch()
            await run_until("\n", lists)


async def test_odd_bytes_do_no_harm(provider: LocalToolProvider) -> None:
    script = f'import sys,base64;sys.stdout.buffer.write(base64.b64decode("{ODD_BYTES}"))'
    answer = await run(provider, make_call(sys.executable, "-c", script))
    assert answer.text == ODD_TEXT


async def test_odd_bytes_that_come_one_by_one_give_the_same_text(provider: LocalToolProvider) -> None:
    script = (
        "import sys,base64,time\n"
        f'for b in base64.b64decode("{ODD_BYTES}"):\n'
        " sys.stdout.buffer.write(bytes([b])); sys.stdout.flush(); time.sleep(0.002)"
    )
    answer = await run(provider, make_call(sys.executable, "-c", script))
    assert answer.text == ODD_TEXT


async def test_bytes_come_whole_where_bytes_are_wanted(provider: LocalToolProvider) -> None:
    answer = await run(provider, shell(r"printf '\377\0\1PNG'", binary=True))
    assert answer.chunks == []
    assert answer.completion == Completion(finish_reason="stop", warnings=[], output=b"\xff\x00\x01PNG")


# --- floods -------------------------------------------------------------------------------------------------------


def peak_rss() -> int:
    """Bytes, since the last reset_peak_rss."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert match is not None
    return int(match[1]) * 1024


def reset_peak_rss() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # proc(5)


async def test_a_flood_of_output_is_cut_and_the_tool_ends_by_itself(provider: LocalToolProvider) -> None:
    reset_peak_rss()
    before = peak_rss()
    script = "yes 0123456789abcdef | head -c 209715200; echo END; exit 3"
    error, answer = await fail(provider, shell(script, max_output_bytes=1_048_576))
    assert error.code is ErrorCode.TOOL_FAILED
    assert error.details["exit_code"] == 3
    [warning] = error.details["warnings"]
    assert (warning["code"], warning["total_bytes"]) == ("output_truncated", 209_715_204)
    assert answer.text.startswith("0123456789abcdef\n" * 1000)
    assert answer.text.endswith("END\n")
    assert len(answer.text) < 1_048_576 + 100
    assert len(answer.chunks) < 200
    assert peak_rss() - before < 64 * MIB


async def test_a_flood_in_one_line_is_cut(provider: LocalToolProvider) -> None:
    reset_peak_rss()
    before = peak_rss()
    script = 'head -c 209715200 /dev/zero | tr "\\0" x; echo; echo END'
    answer = await run(provider, shell(script, max_output_bytes=1_048_576))
    assert answer.text.endswith("x\nEND\n")
    assert answer.completion is not None
    assert answer.completion.warnings[0]["total_bytes"] == 209_715_205
    assert answer.completion.warnings[0]["kept_bytes"] == 1_048_576
    assert peak_rss() - before < 64 * MIB


async def test_a_flood_of_errors_blocks_nothing(provider: LocalToolProvider) -> None:
    reset_peak_rss()
    before = peak_rss()
    answer = await run(provider, shell("yes e | head -c 209715200 >&2; echo ok", max_output_bytes=1_048_576))
    assert answer.text == "ok\n"
    assert answer.completion is not None
    assert [warning["code"] for warning in answer.completion.warnings] == ["stderr_truncated"]
    assert peak_rss() - before < 64 * MIB


async def test_a_slow_reader_loses_nothing(provider: LocalToolProvider) -> None:
    answer = Answer()
    async with provider.stream(shell(f"seq 20000; {SLEEP} &")) as lists:
        async for parts in lists:
            answer.add(parts)
            await trio.sleep(0.15)  # longer than a pipe that is held open is listened to
    assert answer.text == "".join(f"{number}\n" for number in range(1, 20001))


# --- environment --------------------------------------------------------------------------------------------------


async def test_a_tool_sees_only_its_own_environment(scratch_root: Path) -> None:
    daemon = {
        "PATH": os.environ["PATH"],
        "HOME": "/home/me",
        "OPENAI_API_KEY": "sk-test-0000",
        "HF_TOKEN": "hf_test",
        "AWS_SECRET_ACCESS_KEY": "x",
        "NOTIFY_SOCKET": "/run/example",
        "LISTEN_FDS": "1",
        "PYTHONHOME": "/nonexistent",
        "LD_LIBRARY_PATH": "/opt/bundled",
        "LANG": "C.UTF-8",
        "HTTPS_PROXY": "http://proxy.example:3128",
    }
    provider = LocalToolProvider(environment=daemon, scratch_root=str(scratch_root))
    answer = await run(provider, make_call("env", env={"MY_TOKEN": "tok-test-1"}))
    assert dict(line.split("=", 1) for line in answer.text.splitlines()) == {
        "PATH": os.environ["PATH"],
        "HOME": "/home/me",
        "LANG": "C.UTF-8",
        "MY_TOKEN": "tok-test-1",
    }


async def test_an_empty_environment_still_finds_commands(scratch_root: Path) -> None:
    provider = LocalToolProvider(environment={}, scratch_root=str(scratch_root))
    answer = await run(provider, make_call("env"))
    assert {"HOME=/", "LANG=C.UTF-8"} < set(answer.text.splitlines())


async def test_a_tool_has_three_open_files(provider: LocalToolProvider) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        answer = await run(provider, shell("ls /proc/$$/fd; :"))
    finally:
        os.close(reading)
        os.close(writing)
    assert answer.text.split() == ["0", "1", "2"]


async def test_a_tool_leads_a_group_and_a_session_of_its_own(provider: LocalToolProvider) -> None:
    answer = await run(provider, shell("echo $$; cat /proc/$$/stat"))
    pid, _, stat = answer.text.partition("\n")
    _, _, group, session, *_ = stat.rpartition(")")[2].split()
    assert group == session == pid


async def test_a_tool_works_in_the_directory_of_its_profile(provider: LocalToolProvider, tmp_path: Path) -> None:
    assert (await run(provider, make_call("pwd", cwd=str(tmp_path)))).text == f"{tmp_path}\n"


async def test_a_tool_without_a_directory_gets_a_fresh_one(provider: LocalToolProvider, scratch_root: Path) -> None:
    script = "pwd; ls -A; mkdir -p a/b && touch a/b/c file"
    first = (await run(provider, shell(script))).text.split()
    second = (await run(provider, shell(script))).text.split()
    assert [len(first), len(second)] == [1, 1]
    assert first != second
    assert Path(first[0]).parent == scratch_root


# --- failures -----------------------------------------------------------------------------------------------------


async def test_a_nonzero_exit_fails_after_all_output(provider: LocalToolProvider) -> None:
    error, answer = await fail(provider, shell("echo out; echo err >&2; exit 3"))
    assert (error.code, error.message) == (ErrorCode.TOOL_FAILED, "tool t exited with code 3")
    assert error.details == {"exit_code": 3, "stderr": "err\n"}
    assert answer.text == "out\n"


async def test_the_last_4_kib_of_errors_are_told(provider: LocalToolProvider) -> None:
    error, _ = await fail(provider, shell("seq 5000 >&2; exit 1"))
    assert len(error.details["stderr"]) == 4096
    assert error.details["stderr"].endswith("4999\n5000\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_tool_that_a_signal_ends_fails(provider: LocalToolProvider, number: signal.Signals) -> None:
    error, _ = await fail(provider, shell(f"ulimit -c 0; kill -{number} $$"))
    assert error.message == f"tool t was killed by {number.name}"
    assert error.details["exit_code"] == -number


async def test_a_signal_without_a_name_is_told_by_its_number(provider: LocalToolProvider) -> None:
    error, _ = await fail(provider, shell("kill -40 $$"))
    assert error.message == "tool t was killed by signal 40"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["no-such-command-anywhere"], "'no-such-command-anywhere' was not found; install it, or give its full path"),
        (["/etc/passwd"], "'/etc/passwd' is not executable"),
        (["echo", "a\0b"], "cannot be passed on: embedded null byte"),
        (["echo", "x" * 3_000_000], "the arguments of 'echo' are too long; pass large texts through the prompt"),
    ],
)
async def test_a_tool_that_cannot_be_started_says_why(
    provider: LocalToolProvider, command: list[str], message: str
) -> None:
    error, _ = await fail(provider, make_call(*command))
    assert error.code is ErrorCode.TOOL_FAILED
    assert error.message.startswith("tool t could not be started: ")
    assert message in error.message


async def test_a_script_without_a_first_line_is_explained(provider: LocalToolProvider, tmp_path: Path) -> None:
    script = tmp_path / "tool"
    script.write_text("echo hello\n", encoding="utf-8")
    script.chmod(0o755)
    error, _ = await fail(provider, make_call(str(script)))
    assert "needs a first line such as `#!/bin/sh`" in error.message


async def test_a_missing_directory_is_named(provider: LocalToolProvider) -> None:
    error, _ = await fail(provider, make_call("cat", cwd="/nonexistent/directory"))
    assert "its directory '/nonexistent/directory' cannot be entered" in error.message


async def test_a_scratch_directory_that_cannot_be_made_fails_the_tool(tmp_path: Path) -> None:
    provider = LocalToolProvider(environment=os.environ, scratch_root=str(tmp_path / "missing"))
    error, _ = await fail(provider, make_call("cat"))
    assert "no scratch directory could be made" in error.message


async def test_a_total_timeout_fails_the_tool(provider: LocalToolProvider) -> None:
    error, answer = await fail(provider, shell(f"echo begun; {SLEEP} & {SLEEP}", timeout_s=0.3))
    assert (error.code, error.message) == (ErrorCode.TIMEOUT, "tool t did not end within its timeout_s, 0.3 s")
    assert answer.text == "begun\n"


async def test_a_tool_that_closes_its_output_is_waited_for(provider: LocalToolProvider) -> None:
    error, answer = await fail(provider, shell("echo out; exec >&- 2>&-; sleep 0.2; exit 7"))
    assert (answer.text, error.details["exit_code"]) == ("out\n", 7)
