"""Images go to a model beside its prompt: those of sources. Virtual time; artifacts are read from files elsewhere."""

from __future__ import annotations

import base64

from tests.engine_setting import Json, ScriptedRegistry, llm, open_setting
from trio.testing import MockClock

PNG = b"\x89PNG\r\n\x1a\nfirst"
GIF = b"GIF89a second"


def image(data: bytes) -> Json:
    return {"kind": "raw", "label": "picture", "content_base64": base64.b64encode(data).decode()}


async def test_the_images_of_all_sources_go_along_with_a_single_prompt(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry()
    async with open_setting(registry=registry) as setting:
        await setting.run([llm("a")], ["what is this?", image(PNG), image(GIF), image(b"\xff\xfe no picture")])
        [message] = registry.calls[0].messages
        assert message.images == (PNG, GIF)
        assert message.content == "what is this?\n[13 bytes that are not text]"


async def test_in_fanout_each_shard_has_its_own_image(autojump_clock: MockClock) -> None:
    registry = ScriptedRegistry()
    step = llm("a", mode="fanout", max_concurrency=1, prompt={"system": "S", "user": "{{ source.label }}"})
    async with open_setting(registry=registry) as setting:
        await setting.run([step], [image(PNG), "a text", image(GIF)])
        sent = [(call.messages[-1].content, call.messages[-1].images) for call in registry.calls]
        assert sent == [("picture", (PNG,)), ("s", ()), ("picture", (GIF,))]
        assert all(call.messages[0].images == () for call in registry.calls)


async def test_a_step_that_asks_no_model_sees_a_note_of_the_size(autojump_clock: MockClock) -> None:
    step = {"id": "m", "kind": "map", "config": {"map": "identity"}, "export": True}
    async with open_setting() as setting:
        job = await setting.run([step], [image(PNG)])
        assert job.result is not None
        assert job.result.items[0].data["text"] == "[13 bytes that are not text]"
