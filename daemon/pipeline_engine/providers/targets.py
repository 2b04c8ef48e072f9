"""Resolving where a call goes: the step's override, then the profile, then the default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline_engine.decoding import Secret
from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.models import ProviderExtra, ProviderKind, ProviderOverride, ProviderProfile, ProviderSettings
from pipeline_engine.providers.addresses import normalise_base_uri, origin_of
from pipeline_engine.providers.base import Target
from pipeline_engine.providers.limits import LimitSettings

_DEFAULT_BASE_URIS = {
    ProviderKind.OPENAI: "https://api.openai.com/v1",
    ProviderKind.OLLAMA: "http://127.0.0.1:11434",
    ProviderKind.IMAGE: "http://127.0.0.1:9000",
    ProviderKind.LOCAL_TOOL: "",
}
_DEFAULT_MODELS = {ProviderKind.OPENAI: "gpt-4o-mini", ProviderKind.OLLAMA: "llama3"}

#: The profiles that exist without any configuration.
BUILT_IN_PROFILES: tuple[ProviderProfile, ...] = tuple(
    ProviderProfile(
        id=profile_id,
        kind=kind,
        base_uri=_DEFAULT_BASE_URIS[kind],
        default_model=_DEFAULT_MODELS.get(kind, ""),
        extra=ProviderExtra(command=["cat"] if kind is ProviderKind.LOCAL_TOOL else []),
    )
    for profile_id, kind in (
        ("default-openai", ProviderKind.OPENAI),
        ("default-ollama", ProviderKind.OLLAMA),
        ("default-image", ProviderKind.IMAGE),
        ("default-local", ProviderKind.LOCAL_TOOL),
    )
)

# The settings that a Target has under the same name, with its own default for each.
_SCALARS = (
    "system_prompt", "stream", "keep_alive", "api", "timeout_s", "connect_timeout_s", "first_token_timeout_s",
    "idle_timeout_s", "loading_timeout_s", "cwd", "grace_s", "max_output_bytes", "idempotent",
)  # fmt: skip


def base_uri_of(profile: ProviderProfile) -> str:
    """The address that the profile's calls go to: its own as it is written, or the default of its kind."""
    return profile.base_uri or _DEFAULT_BASE_URIS[profile.kind]


def resolve(profile: ProviderProfile, override: ProviderOverride | None = None) -> Target:
    """The target of a call. Raises ProviderError if an address in it cannot be used."""
    over = override or ProviderOverride()
    extra = profile.extra
    own_uri = _base_uri(profile, base_uri_of(profile))
    base_uri = _base_uri(profile, over.base_uri) if over.base_uri else own_uri
    same_origin = origin_of(base_uri) == origin_of(own_uri)
    settings: dict[str, Any] = {name: value for name in _SCALARS if (value := _first(over, extra, name)) is not None}
    if extra.sandbox is not None:
        settings["sandbox"] = extra.sandbox
    settings["max_memory_bytes"] = extra.max_memory_bytes
    return Target(
        profile_id=profile.id,
        kind=profile.kind,
        base_uri=base_uri,
        model=over.default_model or profile.default_model or _DEFAULT_MODELS.get(profile.kind, ""),
        # A secret belongs to the origin that it was given for.
        api_key=profile.api_key if same_origin else None,
        headers=_merged_headers(extra.headers if same_origin else {}, over.headers),
        options={**extra.options, **over.options},
        command=tuple(extra.command),
        env={**extra.env, **over.env},
        limits=limits_of(over),
        **settings,
    )


def limits_of(settings: ProviderSettings) -> LimitSettings:
    """What a profile's `extra`, or an override, says of limits."""
    return LimitSettings(settings.max_concurrency, settings.requests_per_minute, settings.tokens_per_minute)


def _first(over: ProviderSettings, extra: ProviderSettings, name: str) -> object:
    value = getattr(over, name)
    return getattr(extra, name) if value is None else value


def _merged_headers(own: Mapping[str, Secret], over: Mapping[str, Secret]) -> dict[str, Secret]:
    """Both, where a name of the override replaces the profile's in whatever case it is written."""
    replaced = {name.lower() for name in over}
    return {**{name: value for name, value in own.items() if name.lower() not in replaced}, **over}


def _base_uri(profile: ProviderProfile, text: str) -> str:
    if profile.kind is ProviderKind.LOCAL_TOOL:
        return text
    try:
        return normalise_base_uri(text)
    except ValueError as exc:
        raise ProviderError(ErrorCode.PROVIDER_ERROR, f"provider {profile.id!r}: {exc}") from exc
