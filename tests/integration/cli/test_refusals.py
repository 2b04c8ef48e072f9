"""What the client commands say to do when a daemon with a key and a small limit refuses them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.daemon_process import PATIENCE, DaemonProcess

KEY = "the-key-of-the-daemon"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    daemon = DaemonProcess(tmp_path_factory.mktemp("d") / "home")
    daemon.api_key = KEY
    config = daemon.home / "config.toml"
    config.write_text("[limits]\nmax_body_bytes = 2000\n" + config.read_text(encoding="utf-8"), encoding="utf-8")
    yield daemon.start()
    daemon.close()


def refusal(daemon: DaemonProcess, *arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline_engine", *arguments],
        env=daemon.environment | variables,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2
    assert KEY not in done.stderr
    return done.stderr


def test_a_key_that_is_missing_or_wrong_is_told_with_where_it_is_set(daemon: DaemonProcess) -> None:
    told = refusal(daemon, "jobs", "list", PIPELINE_ENGINE_API_KEY="")
    assert told.endswith("; set PIPELINE_ENGINE_API_KEY or PIPELINE_ENGINE_API_KEY_FILE\n")
    assert "PIPELINE_ENGINE_API_KEY_FILE, is wrong\n" in refusal(
        daemon, "jobs", "list", PIPELINE_ENGINE_API_KEY="other"
    )


def test_a_key_that_was_not_sent_is_told(daemon: DaemonProcess) -> None:
    words = "the environment's key is not sent to an address of --url; name it in PIPELINE_ENGINE_URL"
    assert refusal(daemon, "jobs", "list", "--url", daemon.url).endswith(f"; {words}\n")
    told = refusal(daemon, "jobs", "list", "--url", daemon.url, PIPELINE_ENGINE_API_KEY="")
    assert told.endswith(f"; {words}, and the key in PIPELINE_ENGINE_API_KEY\n")


def test_a_job_that_is_too_large_is_told_with_its_size_and_the_way_out(daemon: DaemonProcess, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("x" * 3000, encoding="utf-8")
    told = refusal(daemon, "submit", "words.v1", "--source", str(tmp_path / "log.txt"))
    assert "the job has 3" in told
    assert "but a body may have 2000 bytes (limits.max_body_bytes of the daemon)" in told
    assert "`pipeline-engine run` has no such limit" in told
