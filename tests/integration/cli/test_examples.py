"""Each example runs: those that need no model for real, the others as a dry run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline_engine.providers.builtin import find_builtin_profile

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
DIGEST_LINES = 3000  # of the log sample: enough to see every part of the report


def run(tmp_path: Path, *arguments: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline_engine", "run", *arguments, "--json", "--quiet"],
        cwd=EXAMPLES,
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)},
        capture_output=True,
        encoding="utf-8",
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)["job"]
    assert isinstance(job, dict)
    return job


def text_of(job: dict[str, object]) -> str:
    result = job["result"]
    assert isinstance(result, dict)
    return str(result["items"][-1]["data"]["text"])


def test_the_log_digest_counts_what_is_in_the_log(tmp_path: Path) -> None:
    lines = (EXAMPLES / "data" / "system.log").read_text(encoding="utf-8").split("\n")[:DIGEST_LINES]
    sample = tmp_path / "sample.log"
    sample.write_text("\n".join(lines) + "\n", encoding="utf-8")
    report = text_of(run(tmp_path, "log-digest.yaml", "--source", f"log:sample={sample}"))
    assert f"{DIGEST_LINES}" in report.replace(",", "").replace(" ", "")
    assert "| program |" in report
    assert "## Most repeated messages" in report


def test_package_sizes_and_word_frequency_need_no_model(tmp_path: Path) -> None:
    assert text_of(run(tmp_path, "package-sizes.yaml", "--source", "table:packages=data/packages.csv"))
    words = text_of(
        run(tmp_path, "word-frequency.yaml", "--config", "tools.toml", "--source", "note:license=../LICENSE")
    )
    assert words.split()[:2] == ["35", "license"]


@pytest.mark.parametrize(
    "example", sorted(path.name for path in EXAMPLES.glob("*.yaml")), ids=lambda name: name.removesuffix(".yaml")
)
def test_every_example_rehearses(tmp_path: Path, example: str) -> None:
    if example == "log-summary.yaml" and find_builtin_profile() is None:
        pytest.skip("needs the profile `builtin`, whose packages are not installed")
    job = run(
        tmp_path,
        example,
        "--config",
        "tools.toml",
        "--dry-run",
        "-o",
        "language=French",
        "-s",
        "note:meeting=data/meeting.txt",
    )
    assert job["status"] == "succeeded"
