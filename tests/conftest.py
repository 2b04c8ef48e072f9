"""What holds for every test: an environment that the machine, and how the tests are started, do not colour."""

from __future__ import annotations

import os
import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def heeded_interrupts() -> None:
    """What runs in a shell's background ignores SIGINT, and so would all that the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting, model server or proxy of the person who runs the tests."""
    for name in list(os.environ):
        if name.startswith(("PIPELINE_ENGINE_", "OLLAMA_", "OTEL_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
