"""A home for each test of the configuration."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline_engine import config_loader


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home directory without any configuration; no file of the machine is read.

    Its path is short, since the address of a unix socket has room for 107 bytes.
    """
    with tempfile.TemporaryDirectory(prefix="home-") as folder:
        home = Path(folder)
        monkeypatch.setattr(config_loader, "SYSTEM_FILE", home / "etc" / "config.toml")
        yield home
