"""What checks of definitions know: profiles of each kind, and a handler."""

from __future__ import annotations

from pathlib import Path

from pipeline_engine.decoding import Secret
from pipeline_engine.definitions import (
    DefinitionChecker,
    load_definitions,
)
from pipeline_engine.models import ProviderExtra, ProviderKind, ProviderProfile
from pipeline_engine.templates import Templates

PROFILES = {
    "up": ProviderProfile(id="up", kind=ProviderKind.OPENAI, api_key=Secret("k")),
    "ol": ProviderProfile(id="ol", kind=ProviderKind.OLLAMA),
    "img": ProviderProfile(id="img", kind=ProviderKind.IMAGE),
    "tool": ProviderProfile(id="tool", kind=ProviderKind.LOCAL_TOOL, extra=ProviderExtra(command=["cat"])),
    "shell": ProviderProfile(
        id="shell", kind=ProviderKind.LOCAL_TOOL, extra=ProviderExtra(command=["sh", "-c", "{{ item.text }}"])
    ),
    "spoilt": ProviderProfile(
        id="spoilt", kind=ProviderKind.LOCAL_TOOL, extra=ProviderExtra(command=["cat"], env={"LEVEL": "{{ options."})
    ),
}


def definition_checker() -> DefinitionChecker:
    """Knows these profiles, and the handler `shout`."""
    return DefinitionChecker(
        templates=Templates(), profiles=PROFILES.get, profile_ids=PROFILES.keys, handlers={"shout"}.__contains__
    )


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def types_in(file: Path, checker: DefinitionChecker) -> list[tuple[str, int | None]]:
    return [(loaded.definition.type, loaded.line) for loaded in load_definitions(file, checker=checker)]
