"""Jobs for archives: of every kind that a store may hold, made by an engine on the given store."""

from __future__ import annotations

import io
from pathlib import Path

from tests.drawing_setting import DrawingRegistry, drawing
from tests.engine_setting import Script, Setting, llm, open_setting

from pipeline_engine.archive.exporting import ExportReport, export_jobs, finished_jobs
from pipeline_engine.archive.importing import ImportReport, import_jobs
from pipeline_engine.errors import ErrorCode, StepError
from pipeline_engine.models import JobId
from pipeline_engine.store.artifacts import ArtifactFiles
from pipeline_engine.store.base import JobFilter, PruneChunks, Store

FAILS = Script(error=StepError(ErrorCode.PROVIDER_AUTH, "no"))
NOW = 4_000_000_000.0


async def make_jobs(store: Store, artifacts: Path) -> list[JobId]:
    """Finished jobs of every kind: succeeded, failed, cancelled, pruned, with artifacts and odd texts."""
    registry = DrawingRegistry({"fails": [FAILS], "slow": [Script(first=1000)]})
    async with open_setting(store=store, registry=registry, artifacts=artifacts) as setting:
        return await make_jobs_in(setting)


async def make_jobs_in(setting: Setting) -> list[JobId]:
    skipping = llm("s", "fails", mode="fanout", on_item_error="skip")
    fanout = [llm("a", mode="fanout"), llm("b", depends_on=["a"]), skipping]
    many = await setting.run(fanout, ["x", "zwei \u2028 \x85 \U0001f600"], labels={"k": "v"})
    failed = await setting.run([llm("a"), llm("b", "fails", depends_on=["a"])], ["x"])
    running = await setting.submit([llm("a", "slow")], ["x"])
    cancelled = await setting.engine.cancel(running.id, "enough")
    drawn = await setting.run([drawing("p"), llm("a")], ["x"])
    pruned = await setting.run([llm("a")], ["x"])
    await setting.writer.execute(PruneChunks(pruned.id))
    return [many.id, failed.id, cancelled.id, drawn.id, pruned.id]


def exported(store: Store, files: ArtifactFiles, job_ids: list[JobId] | None = None) -> tuple[bytes, ExportReport]:
    out = io.BytesIO()
    chosen = finished_jobs(store, JobFilter()) if job_ids is None else job_ids
    report = export_jobs(store, files, chosen, out)
    return out.getvalue(), report


def imported(store: Store, files: ArtifactFiles, archive: bytes, *, now: float = NOW) -> ImportReport:
    return import_jobs(store, files, io.BytesIO(archive), name="jobs.ndjson", now=now)
