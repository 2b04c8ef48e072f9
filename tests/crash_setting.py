"""Jobs in an engine that is torn down as by kill -9, and their end in the next one."""

from __future__ import annotations

from collections.abc import Sequence

import trio
from tests.engine_setting import Json, ScriptedRegistry, Setting, names, open_setting

from pipeline_engine.models import Job, JobId
from pipeline_engine.steps.handlers import Handlers
from pipeline_engine.store.memory import MemoryStore


async def run_until_crash(
    store: MemoryStore,
    registry: ScriptedRegistry,
    steps: Sequence[Json],
    sources: Sequence[str],
    *,
    after: float,
    handlers: Handlers | None = None,
    **request: object,
) -> JobId:
    """Submit a job and tear the engine down `after` seconds later, as kill -9 would: nobody is told."""
    job: Job | None = None
    with trio.CancelScope() as scope:
        async with open_setting(store=store, registry=registry, handlers=handlers) as setting:
            job = await setting.submit(steps, sources, **request)
            await trio.sleep(after)
            scope.cancel()
            await trio.sleep_forever()
    assert job is not None
    return job.id


async def finish(setting: Setting, job_id: JobId) -> Job:
    job = await setting.engine.wait(job_id)
    events = setting.stored_events(job_id)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    for once in ("job_queued", "job_started", "stream_finished"):
        assert names(events).count(once) == 1
    return job
