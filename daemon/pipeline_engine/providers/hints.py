"""What a person can do about a failed call: words for the end of its message."""

from __future__ import annotations

from urllib.parse import urlsplit

from pipeline_engine.errors import ErrorCode, StepError
from pipeline_engine.models import ProviderKind, ProviderProfile
from pipeline_engine.providers.addresses import is_loopback
from pipeline_engine.providers.base import Target
from pipeline_engine.providers.connection import CannotConnectError

_KEY_VARIABLE = "PIPELINE_ENGINE_OPENAI_API_KEY"
_KEY_WAYS = {
    "openai-cli": f"set {_KEY_VARIABLE}",
    "default-openai": f"set {_KEY_VARIABLE} and name the profile openai-cli, which it brings",
}
_OLLAMA_PORT = 11434  # of Ollama's own API, and of the one like OpenAI's beside it


def add_hint(error: StepError, target: Target, profile: ProviderProfile) -> None:
    """Let the message end with what to do, where that can be told. The words hold no secret."""
    hint = hint_for(error, target, profile)
    if hint is not None:
        error.message = f"{error.message}; {hint}"
        error.args = (error.message,)


def hint_for(error: StepError, target: Target, profile: ProviderProfile) -> str | None:
    """What to do about the error of a call to `target`, a target of the profile."""
    match error.code:
        # A connection that broke in the middle is another matter: the server is, or was, there.
        case ErrorCode.PROVIDER_UNREACHABLE if isinstance(error, CannotConnectError) and profile.extra.server is None:
            return hint_to_start(profile.id, target.kind, target.base_uri)
        case ErrorCode.PROVIDER_AUTH:
            return _no_access(target, profile)
        case ErrorCode.MODEL_NOT_FOUND:
            return _no_model(target)
        case ErrorCode.PROVIDER_QUOTA:
            return f"the account behind the key of the profile {profile.id!r} has no credit left"
    return None


def hint_to_start(profile_id: str, kind: str, base_uri: str) -> str | None:
    """How to bring up a server that nobody can connect to; None for one on another machine."""
    if not is_loopback(urlsplit(base_uri).hostname or ""):
        return None
    if _is_ollama(kind, base_uri):
        return (
            "is Ollama running? start it with `ollama serve`, or name its address with OLLAMA_HOST "
            f"or as base_uri of the profile {profile_id!r}"
        )
    return f"is the model server running? its address is the base_uri of the profile {profile_id!r}"


def _no_access(target: Target, profile: ProviderProfile) -> str:
    if target.api_key is not None:
        return f"the server does not take the key of the profile {profile.id!r}"
    if target.headers:
        return f"the server does not take the headers of the profile {profile.id!r}"
    if profile.api_key is not None:
        return f"the step's base_uri is another server's, which the key of the profile {profile.id!r} is not sent to"
    ways = f"give it one with api_key_env or api_key_file ({profile.id!r} in [[providers]] of the configuration)"
    return f"the profile {profile.id!r} has no key: {_KEY_WAYS.get(profile.id, ways)}"


def _no_model(target: Target) -> str:
    if _is_ollama(target.kind, target.base_uri):
        return f"to get it, run: ollama pull {target.model}"
    return (
        f"name another as default_model, in the profile {target.profile_id!r} or in the step's provider_override; "
        f"`pipeline-engine providers test {target.profile_id} --json` lists those that there are"
    )


def _is_ollama(kind: str, base_uri: str) -> bool:
    return kind == ProviderKind.OLLAMA or urlsplit(base_uri).port == _OLLAMA_PORT
