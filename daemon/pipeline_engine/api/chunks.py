"""Collects the provider chunks of a job from its stored events."""

from __future__ import annotations

from typing import Any

import msgspec

from pipeline_engine.events import EventName
from pipeline_engine.models import JobId
from pipeline_engine.store.base import Store


class _ChunkLine(msgspec.Struct):
    data: dict[str, Any]


_DECODER = msgspec.json.Decoder(_ChunkLine)


def read_chunks(store: Store, job_id: JobId) -> dict[str, list[dict[str, Any]]]:
    """The data of each provider_chunk event that has not been pruned, in order, by the id of its step."""
    chunks: dict[str, list[dict[str, Any]]] = {}
    seq = 0
    while events := store.read_events(job_id, after_seq=seq, names=(EventName.PROVIDER_CHUNK,)):
        for event in events:
            data = _DECODER.decode(event.line).data
            chunks.setdefault(data["step_id"], []).append(data)
        seq = events[-1].seq
    return chunks
