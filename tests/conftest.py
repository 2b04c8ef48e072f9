"""What holds for every test: an environment that the machine it runs on does not colour."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting, model server or proxy of the person who runs the tests."""
    for name in list(os.environ):
        if name.startswith(("PIPELINE_ENGINE_", "OLLAMA_", "OTEL_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
