"""The call that gives the bytes of an artifact."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import trio

from pipeline_engine.api.calls import Answer, Call, Route
from pipeline_engine.api.context import Api
from pipeline_engine.api.etags import client_has
from pipeline_engine.errors import NotFoundError
from pipeline_engine.models import JobId
from pipeline_engine.providers.mime import sniff_mime

BYTES = "application/octet-stream"
PIECE = 256 * 1024  # bytes that are read and sent at a time
HEAD_BYTES = 64  # enough to tell an image by


async def get_artifact(api: Api, call: Call) -> Answer:
    local = api.ready_local
    job_id, artifact = JobId(call.path_values["id"]), call.path_values["artifact"]
    # Asked first: only what the store knows becomes part of a path.
    if not await local.access.call(local.access.store.artifact_owned, job_id, artifact):
        raise NotFoundError(f"job {job_id} has no artifact {artifact}")
    etag = f'"{artifact}"'
    headers = {
        "ETag": etag,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, max-age=31536000, immutable",
    }
    if client_has(etag, call.headers):
        return Answer(status=304, headers=headers)
    look = partial(_look_at, local.artifacts.path(artifact))
    try:
        size, head = await trio.to_thread.run_sync(look, limiter=api.workers)
    except FileNotFoundError as exc:
        raise NotFoundError(f"the file of artifact {artifact} is missing") from exc
    image = sniff_mime(head)
    disposition = "inline" if image is not None else f'attachment; filename="{artifact}"'
    return Answer(
        content_type=image or BYTES,
        body=_pieces(local.artifacts.path(artifact), api.workers),
        headers={**headers, "Content-Length": str(size), "Content-Disposition": disposition},
    )


def _look_at(path: Path) -> tuple[int, bytes]:
    """The size of the file, and how it begins."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size, file.read(HEAD_BYTES)


async def _pieces(path: Path, limiter: trio.CapacityLimiter) -> AsyncGenerator[bytes, None]:
    def begin() -> BinaryIO:
        return path.open("rb")

    file = await trio.to_thread.run_sync(begin, limiter=limiter)
    with file:
        while piece := await trio.to_thread.run_sync(file.read, PIECE, limiter=limiter):
            yield piece


ROUTES = (
    Route(
        method="GET",
        path="/v1/jobs/{id}/artifacts/{artifact}",
        handler=get_artifact,
        tag="artifacts",
        summary="The bytes of an artifact, with the type that they show.",
        answers={200: ("image/*", BYTES), 304: None},
        errors=("not_found",),
    ),
)
