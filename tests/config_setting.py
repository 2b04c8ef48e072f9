"""Reading a configuration as the commands do, from a home that the test has made."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_engine.config import Config
from pipeline_engine.config_loader import load_config
from pipeline_engine.errors import InvalidRequestError


def load(home: Path, text: str | None = None, overrides: dict | None = None, /, **environ: str) -> Config:
    file = None
    if text is not None:
        file = home / "config.toml"
        file.write_text(text, encoding="utf-8")
    return load_config(environ={"HOME": str(home), **environ}, config_file=file, overrides=overrides)


def refusal(home: Path, text: str | None = None, overrides: dict | None = None, /, **environ: str) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        load(home, text, overrides, **environ)
    return str(caught.value)
