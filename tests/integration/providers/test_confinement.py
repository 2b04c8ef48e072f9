"""What a confined tool can and cannot do, on this kernel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from pipeline_engine.errors import ErrorCode, StepError
from pipeline_engine.models import ProviderKind, Sandbox
from pipeline_engine.providers import confinement, local_tool
from pipeline_engine.providers.base import Chunk, Operation, ProviderCall, Target
from pipeline_engine.providers.confinement import landlock_version
from pipeline_engine.providers.local_tool import LocalToolProvider

needs_landlock = pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock")
needs_signal_scope = pytest.mark.skipif(landlock_version() < 6, reason="this kernel's Landlock knows no signals")


def make_provider(hidden: Sequence[Path] = ()) -> LocalToolProvider:
    provider = LocalToolProvider(environment=os.environ, limiter=trio.CapacityLimiter(4))
    provider.hide(hidden)
    return provider


async def run(script: str, *, hidden: Sequence[Path] = (), **target: Any) -> str:
    call = ProviderCall(
        target=Target(profile_id="t", kind=ProviderKind.LOCAL_TOOL, base_uri="", model="", **target),
        operation=Operation.TOOL,
        command=["sh", "-c", script],
    )
    text = ""
    with trio.fail_after(30):
        async with make_provider(hidden).stream(call) as lists:
            async for parts in lists:
                text += "".join(part.content for part in parts if isinstance(part, Chunk))
    return text


async def test_it_gains_no_privileges_and_leaves_no_core() -> None:
    told = await run("grep NoNewPrivs /proc/self/status; ulimit -c; ulimit -Hc; ulimit -n")
    assert told.split() == ["NoNewPrivs:", "1", "0", "0", "1024"]


async def test_it_has_no_descriptor_but_its_own_three(tmp_path: Path) -> None:
    with (tmp_path / "open").open("w", encoding="utf-8") as file:
        os.set_inheritable(file.fileno(), True)
        assert (await run("ls /proc/self/fd")).split() == ["0", "1", "2", "3"]  # the last is that of ls


async def test_its_signals_are_as_a_program_expects_them() -> None:
    ignored = int((await run("grep SigIgn /proc/self/status")).split()[1], 16)
    assert ignored & (1 << (signal.SIGPIPE - 1)) == 0
    assert ignored & (1 << (signal.SIGXFSZ - 1)) == 0


@needs_landlock
async def test_it_writes_its_scratch_directory_alone(tmp_path: Path) -> None:
    script = (
        f"mkdir a && echo x > a/b && mv a/b c && rm c && echo fine; touch {tmp_path}/y || echo refused; : > /dev/null"
    )
    assert await run(script) == "fine\nrefused\n"
    assert not (tmp_path / "y").exists()


@needs_landlock
async def test_it_cannot_change_what_it_can_read(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("as it was", encoding="utf-8")
    script = f"cat {file}; echo x >> {file} || rm {file} || mv {file} . || chmod 777 /nowhere || echo ' refused'"
    assert await run(script) == "as it was refused\n"
    assert file.read_text(encoding="utf-8") == "as it was"


@needs_landlock
async def test_it_writes_what_the_profile_names(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.touch()
    script = f"touch {folder}/x; echo y > {file}; touch {tmp_path}/z || echo refused"
    assert await run(script, sandbox=Sandbox(writable=[str(folder), str(file)])) == "refused\n"
    assert (folder / "x").exists()
    assert file.read_text(encoding="utf-8") == "y\n"


@needs_landlock
async def test_its_working_directory_is_not_its_own(tmp_path: Path) -> None:
    assert await run("touch x || echo refused", cwd=str(tmp_path)) == "refused\n"
    assert await run("touch x && echo fine", cwd=str(tmp_path), sandbox=Sandbox(writable=["."])) == "fine\n"


@needs_landlock
async def test_it_cannot_read_what_is_hidden_but_all_beside_it(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    for name in ("state/db", "config.toml", "other"):
        (tmp_path / name).write_text(f"{name}\n", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "state")
    hidden = [tmp_path / "link", tmp_path / "config.toml", tmp_path / "missing"]
    script = f"cd {tmp_path}; cat state/db; cat link/db; cat config.toml; cp config.toml /dev/stdout; cat other"
    assert await run(f"{script} 2>/dev/null", hidden=hidden) == "other\n"


@needs_landlock
async def test_it_cannot_look_into_the_daemon() -> None:
    assert await run(f"cat /proc/{os.getpid()}/environ >/dev/null 2>&1 || echo refused") == "refused\n"


@needs_signal_scope
async def test_it_cannot_signal_the_daemon() -> None:
    assert await run(f"kill -0 {os.getpid()} 2>/dev/null || echo refused") == "refused\n"


@needs_landlock
async def test_a_tool_that_is_denied_a_file_hears_of_the_sandbox(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"exited with code 2; a tool may write .* sandbox\.writable"):
        await run(f"sh -c 'echo x > {tmp_path}/x'")
    with pytest.raises(StepError) as caught:
        await run("echo 'Permission denied' >&2; exit 1", sandbox=False)
    assert "sandbox" not in caught.value.message


async def test_without_the_sandbox_it_may_do_what_the_daemon_may(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.write_text("seen", encoding="utf-8")
    assert await run(f"cat {hidden}; touch {tmp_path}/x", hidden=[hidden], sandbox=False) == "seen"
    assert (tmp_path / "x").exists()


async def test_a_writable_path_that_is_missing_is_told() -> None:
    if landlock_version() == 0:
        pytest.skip("this kernel has no Landlock")
    with pytest.raises(StepError, match=r"'/nowhere', a path of `sandbox.writable`: No such file"):
        await run("true", sandbox=Sandbox(writable=["/nowhere"]))


async def test_a_kernel_without_landlock_is_told_once_and_tools_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(local_tool, "landlock_version", lambda: 0)
    # Version 0 is also what the launcher finds where a filter of system calls forbids them.
    launcher = Path(confinement.__file__).with_name("tool_launcher.py").read_text(encoding="utf-8")
    assert "abi < 1" in launcher
    provider = make_provider()
    for _ in range(2):
        call = ProviderCall(
            target=Target(profile_id="t", kind=ProviderKind.LOCAL_TOOL, base_uri="", model=""),
            operation=Operation.TOOL,
            command=["true"],
        )
        async with provider.stream(call) as lists:
            async for _parts in lists:
                pass
    assert [entry.getMessage() for entry in caplog.records].count(
        "this kernel has no Landlock: tools can read and write whatever the daemon's user can"
    ) == 1


def test_it_dies_with_the_daemon(tmp_path: Path) -> None:
    mark = f"300.{os.getpid()}9"
    program = textwrap.dedent(f"""
        import os, trio
        from pipeline_engine.models import ProviderKind
        from pipeline_engine.providers.base import Operation, ProviderCall, Target
        from pipeline_engine.providers.local_tool import LocalToolProvider

        async def main():
            target = Target(profile_id="t", kind=ProviderKind.LOCAL_TOOL, base_uri="", model="")
            call = ProviderCall(target=target, operation=Operation.TOOL, command=["sleep", "{mark}"])
            async with LocalToolProvider(environment=os.environ).stream(call) as lists:
                print("started", flush=True)
                async for parts in lists:
                    pass

        trio.run(main)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"started\n"
        assert sleepers(mark)
        daemon.kill()
    deadline = time.monotonic() + 10
    while sleepers(mark):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def sleepers(mark: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cmdline").read_bytes() == f"sleep\0{mark}\0".encode():
                found.append(path.name)
        except OSError:
            continue
    return found


GREEDY = f"{sys.executable} -c 'held = [bytearray(1 << 24) for _ in range(1000)]'"  # 16 GiB
MIB = 1 << 20


@pytest.mark.parametrize("script", [GREEDY, f"head -c {1000 * MIB} /dev/zero | tail -c {900 * MIB} >/dev/null"])
async def test_a_tool_that_eats_memory_fails_and_the_error_names_the_limit(script: str) -> None:
    with pytest.raises(StepError) as caught:
        await run(script, max_memory_bytes=256 * MIB)
    assert caught.value.code is ErrorCode.TOOL_FAILED
    assert caught.value.message.endswith(
        f"it ran out of memory, of which it may have {256 * MIB} bytes (extra.max_memory_bytes)"
    )


async def test_the_memory_of_a_tool_is_limited_unless_its_profile_says_otherwise() -> None:
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    assert await run("ulimit -Hd; ulimit -Sd") == f"{half // 1024}\n" * 2
    assert await run("ulimit -d", max_memory_bytes=64 * MIB) == f"{64 * 1024}\n"
    assert await run("ulimit -d", max_memory_bytes=0) == "unlimited\n"


async def test_memory_that_is_only_reserved_does_not_count() -> None:
    program = "import mmap; mmap.mmap(-1, 1 << 36, prot=0, flags=mmap.MAP_PRIVATE | 0x4000); print(1)"
    assert await run(f"{sys.executable} -c '{program}'", max_memory_bytes=256 * MIB) == "1\n"
