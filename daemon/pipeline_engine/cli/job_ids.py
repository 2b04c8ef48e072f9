"""Which job an argument means: a whole id, the beginning or the end of one, or the newest job."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline_engine.cli.client import EXIT_REFUSED, fail
from pipeline_engine_sdk import Job, PipelineEngineClient

# No id can be mistaken for it, nor can what is meant as a part of one.
LAST = "@last"
RECENT_JOBS = 500  # one page of a list: abbreviations are for what one has just seen
SHORTEST = 4  # characters of an abbreviation
SHOWN_CANDIDATES = 10

_PREFIX = "job_"
_WHOLE = re.compile(r"job_[0-9a-z]{26}")


def find_job_id(client: PipelineEngineClient, text: str) -> str:
    """The id of the job that is meant; ends the program where it is none, or more than one."""
    if text != LAST:
        return find_job_ids(client, [text])[0]
    newest = client.list_jobs(limit=1).jobs
    return newest[0].id if newest else fail("there is no job yet", EXIT_REFUSED)


def find_job_ids(client: PipelineEngineClient, texts: Sequence[str]) -> list[str]:
    """As find_job_id, for several jobs, none of which may be @last: they are all meant, or the program ends."""
    if LAST in texts:
        fail(f"{LAST} may be the job of somebody else by now; name the job by its id, or a part of that", EXIT_REFUSED)
    if all(map(_WHOLE.fullmatch, texts)):
        return list(texts)  # without a call
    recent = client.list_jobs(limit=RECENT_JOBS).jobs
    return [text if _WHOLE.fullmatch(text) else _find(recent, text) for text in texts]


def _find(recent: Sequence[Job], text: str) -> str:
    part = text.removeprefix(_PREFIX)
    if any(job.id == text for job in recent):
        return text
    if len(part) < SHORTEST:
        fail(f"{text!r} is no id of a job; a part of one has at least {SHORTEST} characters", EXIT_REFUSED)
    # With `job_` it can only be the beginning.
    found = [job for job in recent if job.id.startswith(_PREFIX + part) or job.id.endswith(text)]
    if not found:
        among = f"the newest {RECENT_JOBS} jobs" if len(recent) == RECENT_JOBS else "the jobs"
        fail(f"none of {among} has an id that begins or ends with {text!r}", EXIT_REFUSED)
    if len(found) > 1:
        lines = [f"{text!r} can be any of {len(found)} jobs:"]
        lines += [f"  {job.id}  {job.status}  {job.pipeline_type}" for job in found[:SHOWN_CANDIDATES]]
        lines += [f"  and {len(found) - SHOWN_CANDIDATES} more"] if len(found) > SHOWN_CANDIDATES else []
        fail("\n".join(lines), EXIT_REFUSED)
    return found[0].id
