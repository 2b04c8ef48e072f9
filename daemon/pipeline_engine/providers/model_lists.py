"""The list of the models that a server offers."""

from __future__ import annotations

from pipeline_engine.models import ProviderKind
from pipeline_engine.providers.addresses import join_path
from pipeline_engine.providers.base import Target
from pipeline_engine.providers.framing import decode_json
from pipeline_engine.providers.http import get
from pipeline_engine.providers.transport import HttpClient


async def fetch_models(client: HttpClient, target: Target) -> list[str]:
    """Their names, in the server's order. Raises ProviderError."""
    path, name = "/models", "id"
    if target.kind is ProviderKind.OLLAMA:
        path, name = "/api/tags", "name"
    elif target.kind is ProviderKind.IMAGE and target.api == "a1111":
        path, name = "/sdapi/v1/sd-models", "model_name"
    async with get(client, target, join_path(target.base_uri, path)) as answer:
        body = await answer.read()
        try:
            value = decode_json(body)
        except ValueError as exc:
            raise answer.protocol_error("is not JSON", raw=body) from exc
        # OpenAI's `data`, Ollama's `models`, or a bare list.
        entries = value.get("data", value.get("models")) if isinstance(value, dict) else value
        if not isinstance(entries, list):
            raise answer.protocol_error("is no list of models", raw=body)
    names = [entry.get(name) for entry in entries if isinstance(entry, dict)]
    return [found for found in names if isinstance(found, str)]
