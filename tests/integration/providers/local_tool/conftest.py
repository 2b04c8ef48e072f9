"""A provider of tools, and the look after each test at what they left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from tests.tool_setting import (
    SLEEP,
    children,
    open_files,
    processes,
)

from pipeline_engine.providers.local_tool import LocalToolProvider


@pytest.fixture
def scratch_root(tmp_path: Path) -> Path:
    root = tmp_path / "scratch"
    root.mkdir()
    return root


@pytest.fixture
def provider(scratch_root: Path) -> LocalToolProvider:
    return LocalToolProvider(environment=os.environ, scratch_root=str(scratch_root), limiter=trio.CapacityLimiter(4))


@pytest.fixture(autouse=True)
def nothing_is_left(scratch_root: Path) -> Iterator[None]:
    """Whatever a test does: no open file, no child, no process of a group and no directory remains."""
    before = open_files()
    yield
    assert open_files() <= before
    assert children() == []
    assert processes(SLEEP) == []
    assert list(scratch_root.iterdir()) == []
