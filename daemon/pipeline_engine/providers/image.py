"""The image provider: OpenAI's image generations and AUTOMATIC1111's txt2img."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any
from urllib.parse import urljoin

import msgspec

from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.providers.addresses import origin_of, without_query
from pipeline_engine.providers.base import Chunk, Completion, ProviderCall, Target
from pipeline_engine.providers.http import Answer, get, post_json
from pipeline_engine.providers.mime import sniff_mime
from pipeline_engine.providers.transport import HttpClient
from pipeline_engine.providers.usage import usage_of

__all__ = ["MAX_IMAGE_SIZE", "ImageProvider", "sniff_mime"]

MAX_IMAGE_SIZE = 64 * 1024 * 1024  # bytes


class ImageProvider:
    """Runs IMAGE calls; the last message is the prompt, and all images come in the Completion."""

    def __init__(self, *, client: HttpClient) -> None:
        self._client = client

    @asynccontextmanager
    async def stream(self, call: ProviderCall) -> AsyncIterator[AsyncIterator[list[Chunk | Completion]]]:
        async with aclosing(self._a1111(call) if call.target.api == "a1111" else self._openai(call)) as batches:
            yield batches

    async def _openai(self, call: ProviderCall) -> AsyncGenerator[list[Chunk | Completion]]:
        target = call.target
        body = {**target.options, "prompt": _prompt(call)}
        if target.model:
            body["model"] = target.model
        async with post_json(self._client, target, "/images/generations", body) as answer:
            value = await answer.json()
            entries = value.get("data")
            if not isinstance(entries, list):
                raise answer.protocol_error("has no list of images")
            images = [await self._image_of(entry, target, answer) for entry in entries]
            completion = _completion(images, target, usage=value.get("usage"))
        yield [completion]

    async def _a1111(self, call: ProviderCall) -> AsyncGenerator[list[Chunk | Completion]]:
        target = call.target
        body = {**target.options, "prompt": _prompt(call)}
        if target.model:
            own = body.get("override_settings")
            body["override_settings"] = {"sd_model_checkpoint": target.model, **(own if isinstance(own, dict) else {})}
        async with post_json(self._client, target, "/sdapi/v1/txt2img", body) as answer:
            entries = (await answer.json()).get("images")
            if not isinstance(entries, list):
                raise answer.protocol_error("has no list of images")
            completion = _completion([_decoded(entry, answer) for entry in entries], target)
        yield [completion]

    async def _image_of(self, entry: Any, target: Target, answer: Answer) -> bytes:
        """One element of OpenAI's `data`: the image itself, or where it is."""
        entry = entry if isinstance(entry, dict) else {}
        if entry.get("b64_json"):
            return _decoded(entry["b64_json"], answer)
        url = entry.get("url")
        if not isinstance(url, str) or not url:
            raise answer.protocol_error("has an image without b64_json and url")
        if url.startswith("data:"):
            return _decoded(url, answer)
        try:
            url = urljoin(f"{without_query(target.base_uri)}/", url)
            origin = origin_of(url)
        except ValueError as exc:
            raise answer.protocol_error("has an image at an address that is not valid") from exc
        if origin[0] not in ("http", "https"):
            raise answer.protocol_error("has an image at an address that is not http or https")
        if origin != origin_of(target.base_uri):
            # A secret belongs to the origin that it was given for. The errors name the other server.
            target = msgspec.structs.replace(target, base_uri=without_query(url), api_key=None, headers={})
        async with get(self._client, target, url) as image:
            return _checked(await image.read(MAX_IMAGE_SIZE), image)


def _prompt(call: ProviderCall) -> str:
    return call.messages[-1].content if call.messages else ""


def _completion(images: list[bytes], target: Target, *, usage: Any = None) -> Completion:
    if not images:
        message = f"the answer of {without_query(target.base_uri)} holds no image"
        raise ProviderError(ErrorCode.PROVIDER_EMPTY, message, retryable=True)
    return Completion(images=images, usage=usage_of(usage), model=target.model or None)


def _decoded(value: Any, answer: Answer) -> bytes:
    """Base64 in the forms that servers send: with or without a data URI's prefix, padding and line breaks."""
    if not isinstance(value, str):
        raise answer.protocol_error("has an image that is not base64")
    text = value.partition(",")[2] if value.startswith("data:") else value
    text = "".join(text.split()).rstrip("=")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError as exc:
        raise answer.protocol_error("has an image that is not base64") from exc
    return _checked(data, answer)


def _checked(data: bytes, answer: Answer) -> bytes:
    if sniff_mime(data) is None:
        raise answer.protocol_error("has an image that is neither PNG, JPEG, WebP nor GIF", raw=data[:80])
    return data
