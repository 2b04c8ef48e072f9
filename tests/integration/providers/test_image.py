"""What image servers answer."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from tests.provider_calls import collect, image_call, open_client, target_of
from tests.scripted_server import Reply, ScriptedServer, open_server

from pipeline_engine.decoding import Secret
from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.models import ProviderKind
from pipeline_engine.providers.image import ImageProvider, sniff_mime

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(50))
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF"
WEBP = b"RIFF\x24\x00\x00\x00WEBPVP8L"
GIF = b"GIF89a\x01\x00"
B64 = base64.b64encode(PNG).decode()


async def draw(server: ScriptedServer, **settings: Any) -> list[bytes]:
    async with open_client() as client:
        target = target_of(f"{server.url}/v1", ProviderKind.IMAGE, **settings)
        answer = await collect(ImageProvider(client=client).stream(image_call(target)))
        return list(answer.completion.images)


@pytest.mark.parametrize(
    ("data", "mime"),
    [
        (PNG, "image/png"), (JPEG, "image/jpeg"), (WEBP, "image/webp"), (GIF, "image/gif"),
        (b"<html></html>", None), (b"", None), (b"RIFF\x24\x00\x00\x00WAVE", None),
    ],
)  # fmt: skip
def test_the_type_comes_from_the_bytes(data: bytes, mime: str | None) -> None:
    assert sniff_mime(data) == mime


async def test_the_request() -> None:
    async with open_server(Reply.json({"data": [{"b64_json": B64}]})) as server:
        assert await draw(server, options={"size": "64x64"}, api_key=Secret("sk-1")) == [PNG]
        [request] = server.requests
        assert request.target == "/v1/images/generations"
        assert request.headers["authorization"] == "Bearer sk-1"
        assert request.json == {"model": "m", "prompt": "a cat", "size": "64x64"}


async def test_without_a_model_none_is_named() -> None:
    async with open_server(Reply.json({"data": [{"b64_json": B64}]})) as server:
        await draw(server, model="")
        assert server.requests[0].json == {"prompt": "a cat"}


@pytest.mark.parametrize(
    "value",
    [B64, "data:image/jpeg;base64," + B64, B64.rstrip("="), "\n".join(B64[i : i + 20] for i in range(0, len(B64), 20))],
)
async def test_base64_in_all_its_forms(value: str) -> None:
    async with open_server(Reply.json({"images": [value], "info": "not json"})) as server:
        assert await draw(server, api="a1111") == [PNG]
        [request] = server.requests
        assert request.target == "/v1/sdapi/v1/txt2img"
        assert request.json == {"prompt": "a cat", "override_settings": {"sd_model_checkpoint": "m"}}


async def test_an_image_at_an_address_of_the_server_is_fetched_with_the_key() -> None:
    image = Reply(headers={"content-type": "image/png"}, chunks=[PNG])
    async with open_server(Reply.json({"data": [{"url": "/files/1.png"}]}), image) as server:
        assert await draw(server, api_key=Secret("sk-1")) == [PNG]
        assert (server.requests[1].method, server.requests[1].target) == ("GET", "/files/1.png")
        assert server.requests[1].headers["authorization"] == "Bearer sk-1"


async def test_an_image_of_another_origin_is_fetched_without_the_key() -> None:
    async with open_server(Reply(chunks=[PNG])) as files:
        async with open_server(Reply.json({"data": [{"url": f"{files.url}/1.png?sig=x"}]})) as server:
            images = await draw(server, api_key=Secret("sk-1"), headers={"X-Key": Secret("secret")})
        assert images == [PNG]
        [request] = files.requests
        assert request.target == "/1.png?sig=x"
        assert not {"authorization", "x-key"} & set(request.headers)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ({"data": []}, ErrorCode.PROVIDER_EMPTY),
        ({"data": None}, ErrorCode.PROVIDER_PROTOCOL),
        ({"data": [{}]}, ErrorCode.PROVIDER_PROTOCOL),
        ({"data": [{"b64_json": "!!!"}]}, ErrorCode.PROVIDER_PROTOCOL),
        ({"data": [{"b64_json": base64.b64encode(b"<html>").decode()}]}, ErrorCode.PROVIDER_PROTOCOL),
        ({"data": [{"b64_json": "é"}]}, ErrorCode.PROVIDER_PROTOCOL),
        ({"data": [{"url": "file:///etc/passwd"}]}, ErrorCode.PROVIDER_PROTOCOL),
        ({"data": [{"url": "http://[bad"}]}, ErrorCode.PROVIDER_PROTOCOL),
        ({"data": [{"url": "http://h:99999999/x"}]}, ErrorCode.PROVIDER_PROTOCOL),
        ({"data": [{"url": "http://h..:1/x"}]}, ErrorCode.PROVIDER_UNREACHABLE),
        ({"error": {"code": "content_policy_violation", "message": "no"}}, ErrorCode.CONTENT_FILTERED),
    ],
)
async def test_answers_without_an_image(value: Any, code: ErrorCode) -> None:
    async with open_server(Reply.json(value)) as server:
        with pytest.raises(ProviderError) as caught:
            await draw(server)
    assert caught.value.code is code


@pytest.mark.parametrize(
    ("images", "code"),
    [
        ([], ErrorCode.PROVIDER_EMPTY),
        (["!!!not base64!!!"], ErrorCode.PROVIDER_PROTOCOL),
        (None, ErrorCode.PROVIDER_PROTOCOL),
    ],
)
async def test_a1111_answers_without_an_image(images: Any, code: ErrorCode) -> None:
    async with open_server(Reply.json({"images": images})) as server:
        with pytest.raises(ProviderError) as caught:
            await draw(server, api="a1111")
    assert caught.value.code is code


async def test_an_image_that_cannot_be_fetched() -> None:
    async with open_server(Reply.json({"data": [{"url": "/gone.png"}]}), Reply(status=404)) as server:
        with pytest.raises(ProviderError, match="answered 404"):
            await draw(server)
