"""The images that go to a model along with its prompt: those of sources, and the artifacts of items."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import trio

from pipeline_engine.errors import ErrorCode, StepError
from pipeline_engine.providers.mime import sniff_mime
from pipeline_engine.steps.context import JobContext
from pipeline_engine.steps.shards import Shard
from pipeline_engine.store.artifacts import ArtifactFiles


async def images_of(context: JobContext, shard: Shard) -> tuple[bytes, ...]:
    """The images of the shard's sources and artifacts, in their order. Raises StepError when an artifact is gone."""
    images = [image for index in shard.sources if (image := context.source_images[index]) is not None]
    if shard.artifacts:
        services = context.services
        read = functools.partial(_read, services.artifacts, shard.artifacts)
        images += await trio.to_thread.run_sync(read, limiter=services.workers)
    return tuple(images)


def _read(files: ArtifactFiles, artifacts: Sequence[str]) -> list[bytes]:
    images = []
    for sha256 in artifacts:
        try:
            data = files.path(sha256).read_bytes()
        except OSError as exc:
            words = f"the artifact {sha256} cannot be read: {exc.strerror}"
            raise StepError(ErrorCode.MISSING_DEPENDENCY, words) from exc
        if sniff_mime(data) is not None:
            images.append(data)
    return images
