"""A provider for tests that draws: its picture is kept as an artifact."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from tests.engine_setting import Json, Script, ScriptedProvider, ScriptedRegistry

from pipeline_engine.models import ProviderKind, ProviderProfile
from pipeline_engine.providers.base import Chunk, Completion, Operation, ProviderCall

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4096  # more than one record of an archive holds


class DrawingRegistry(ScriptedRegistry):
    """Profile `painter` draws a picture; `draw` makes it of the prompt."""

    def __init__(
        self, scripts: Mapping[str, Sequence[Script]] | None = None, *, draw: Callable[[str], bytes] = lambda _: PNG
    ) -> None:
        super().__init__(provider=_DrawingProvider(scripts or {}, draw))
        self.put(ProviderProfile(id="painter", kind=ProviderKind.IMAGE, base_uri="http://127.0.0.1:9"))


class _DrawingProvider(ScriptedProvider):
    def __init__(self, scripts: Mapping[str, Sequence[Script]], draw: Callable[[str], bytes]) -> None:
        super().__init__(scripts)
        self._draw = draw

    @asynccontextmanager
    async def stream(self, call: ProviderCall) -> AsyncIterator[AsyncIterator[list[Chunk | Completion]]]:
        if call.operation is not Operation.IMAGE:
            async with super().stream(call) as batches:
                yield batches
            return

        async def drawn() -> AsyncIterator[list[Chunk | Completion]]:
            yield [Completion(finish_reason="stop", images=[self._draw(call.messages[-1].content)])]

        self.calls.append(call)
        yield drawn()


def drawing(step_id: str, **step: object) -> Json:
    return {
        "id": step_id,
        "kind": "image",
        "provider_profile_id": "painter",
        "output_type": "image",
        "export": True,
        **step,
    }
