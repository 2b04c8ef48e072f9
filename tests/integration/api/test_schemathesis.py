"""Requests made at random from the API's own document: nothing fails inside, nothing is answered that it does not name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

#: For each of the two dozen operations; `make fuzz` sets it, and then all kinds of cases are tried.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
FEW = 8  # enough to see a break
PHASES = "examples,coverage,fuzzing,stateful" if EXAMPLES else "examples,fuzzing"
AT_LEAST = 2_000 if EXAMPLES else 100  # cases
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,unsupported_method,use_after_free,ensure_resource_availability"
)
PATIENCE = 20.0  # seconds


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    log = tmp_path / "log"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    variables = {
        **kept,
        "HOME": str(tmp_path),
        "PIPELINE_ENGINE_DATA_DIR": str(tmp_path / "data"),
        "PIPELINE_ENGINE_ADDR": "127.0.0.1:0",
    }
    with log.open("wb") as file:
        command = [sys.executable, "-m", "pipeline_engine", "serve"]
        daemon = subprocess.Popen(command, env=variables, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(r"listening on (http://\S+)", log.read_text(encoding="utf-8"))):
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.02)
        yield found[1]
        assert daemon.poll() is None
        assert "Traceback" not in log.read_text(encoding="utf-8")
    finally:
        daemon.kill()
        daemon.wait()


@pytest.mark.timeout(400)
def test_every_answer_is_one_that_the_document_names(url: str, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [
            program, "run", f"{url}/openapi.json", "--checks", CHECKS, "--phases", PHASES, "--seed", "1",
            "--max-examples", str(EXAMPLES or FEW), "--request-timeout", "10", "--no-color",
            # A stream ends with its job; the tests of streams look at what it says.
            "--exclude-path-regex", "stream",
        ],
        cwd=tmp_path,  # where it keeps its own files
        capture_output=True,
        encoding="utf-8",
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20_000:]
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated is not None
    assert int(generated[1]) >= AT_LEAST
