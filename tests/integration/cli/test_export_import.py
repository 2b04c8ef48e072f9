"""`pipeline-engine export` and `import` as processes: files, exit codes, and a daemon beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.archive_setting import make_jobs

from pipeline_engine.store.lock import hold_directory
from pipeline_engine.store.sqlite import open_sqlite_store


def call(*arguments: str | Path, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "pipeline_engine", *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, timeout=30, check=False)


@pytest.fixture
async def old(tmp_path: Path) -> Path:
    """A data directory with finished jobs."""
    store = open_sqlite_store(tmp_path / "old" / "engine.db")
    await make_jobs(store, tmp_path / "old" / "artifacts")
    store.close()
    return tmp_path / "old"


async def test_jobs_move_from_one_data_directory_to_another(old: Path, tmp_path: Path) -> None:
    file = tmp_path / "jobs.ndjson"
    with hold_directory(old):  # as a daemon does
        done = call("export", "--data-dir", old, "--output", file)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"exported 5 jobs\n")
    assert file.stat().st_mode & 0o777 == 0o600
    with hold_directory(old):
        done = call("import", "--data-dir", old, file)
        assert done.returncode == 2
        assert b"is in use by process" in done.stderr
    done = call("import", "--data-dir", tmp_path / "new", "-", data=file.read_bytes())
    assert (done.returncode, done.stdout, done.stderr) == (0, b"imported 5 jobs\n", b"")
    done = call("export", "--data-dir", tmp_path / "new")
    assert done.stdout == file.read_bytes()
    done = call("import", "--data-dir", tmp_path / "new", "--json", file)
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert [len(report[key]) for key in ("imported", "present", "refused")] == [0, 5, 0]
    listed = [path for path in (tmp_path / "new").rglob("*") if path.is_file()]
    assert all(path.stat().st_mode & 0o077 == 0 for path in listed)


async def test_an_export_holds_the_jobs_that_are_asked_for(old: Path) -> None:
    def ids(*arguments: str) -> list[str]:
        lines = call("export", "--data-dir", old, *arguments).stdout.splitlines()
        return [json.loads(line)["job"]["id"] for line in lines if line.startswith(b'{"record":"job"')]

    everything = ids()
    assert ids("--status", "failed") == everything[1:2]
    assert ids("--label", "k=v") == everything[:1]
    assert ids("--type", "nothing.v1") == []
    assert ids(everything[2], everything[0], everything[2]) == [everything[2], everything[0]]
    done = call("export", "--data-dir", old, "--json", "job_nobody")
    assert (done.returncode, json.loads(done.stderr)) == (
        1,
        {"exported": 0, "left_out": {"job_nobody": "there is no such job"}},
    )
    assert call("export", "--data-dir", old, "--status", "failed", everything[0]).returncode == 2


async def test_what_is_refused_is_told_with_file_and_line(old: Path, tmp_path: Path) -> None:
    file = tmp_path / "jobs.ndjson"
    file.write_bytes(call("export", "--data-dir", old).stdout.replace(b'"seq":2,', b'"seq":7,', 1))
    done = call("import", "--data-dir", tmp_path / "new", file)
    assert (done.returncode, done.stdout) == (2, b"imported 4 jobs\n")
    assert f"pipeline-engine: {file}:".encode() in done.stderr
    assert b"the event has seq 7; 2 is expected" in done.stderr
    file.write_bytes(b"hello\n")
    done = call("import", "--data-dir", tmp_path / "new", file)
    assert done.returncode == 2
    assert done.stderr.startswith(f"pipeline-engine: {file}: line 1: is no record of an archive".encode())
    done = call("export", "--data-dir", tmp_path / "nowhere")
    assert done.returncode == 2
    assert b"there are no jobs in" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_root_leaves_nothing_that_the_owner_of_the_directory_cannot_use(old: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    foreign = tmp_path / "foreign"
    foreign.touch()
    (tmp_path / "new" / "link").symlink_to(foreign)
    (tmp_path / "new" / "name").hardlink_to(foreign)
    os.chown(tmp_path / "new", 4711, 4712)
    assert (
        call("import", "--data-dir", tmp_path / "new", "-", data=call("export", "--data-dir", old).stdout).returncode
        == 0
    )
    assert foreign.stat().st_uid == 0
    made = [path for path in (tmp_path / "new").rglob("*") if path.name != "name"]
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in made} == {(4711, 4712)}
    assert {"engine.db", "clock.json", "artifacts"} <= {path.name for path in made}


async def test_jobs_that_retention_will_remove_are_told_of(old: Path, tmp_path: Path) -> None:
    file, config = tmp_path / "jobs.ndjson", tmp_path / "config.toml"
    call("export", "--data-dir", old, "--output", file)
    config.write_text("[store.retention]\nmax_age_days = 0.00000001\n", encoding="utf-8")
    done = call("import", "--data-dir", tmp_path / "new", "--config", config, file)
    assert done.returncode == 0
    assert b"5 of them ended longer ago than store.retention.max_age_days allows" in done.stderr
