"""A user's program on the client that openapi-python-client generates. It prints what it saw as one JSON object.

python program.py DAEMON_URL MODEL_SERVER_URL
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TypeVar

from generated_client import Client
from generated_client.api.events import list_events
from generated_client.api.jobs import cancel_job, create_job, get_job, list_jobs
from generated_client.api.providers import upsert_provider_profile
from generated_client.models import (
    CancelRequest,
    ErrorAnswer,
    EventsPage,
    ItemCompletedEvent,
    Job,
    JobAnswer,
    JobInput,
    JobList,
    JobRequest,
    JobRequestLabels,
    JobResult,
    JobStatus,
    PipelineDef,
    Prompt,
    ProviderChunkEvent,
    ProviderKind,
    ProviderProfile,
    ProviderView,
    Source,
    StepDef,
    StepKind,
    StreamFinishedEvent,
)
from generated_client.types import Unset

T = TypeVar("T")


def expect(answer: object, type_: type[T]) -> T:
    """The answer as what it must be, or the program's end: what the daemon refuses here is a mistake of ours."""
    if isinstance(answer, ErrorAnswer):
        raise SystemExit(f"{answer.error.code}: {answer.error.message}")
    if not isinstance(answer, type_):
        raise SystemExit(f"not a {type_.__name__}: {answer!r}")
    return answer


def known(value: T | Unset) -> T:
    """A field that may be left out, where it is not."""
    if isinstance(value, Unset):
        raise SystemExit("a field is missing")
    return value


def greeting() -> JobRequest:
    step = StepDef(
        id="greet",
        kind=StepKind.LLM,
        provider_profile_id="scripted",
        prompt=Prompt(user="Greet {{ sources[0].content }}."),
        export=True,
    )
    return JobRequest(
        pipeline=PipelineDef(type_="greeting.v1", steps=[step]),
        input_=JobInput(sources=[Source(kind="note", content="Ada")]),
        labels=JobRequestLabels.from_dict({"from": "python"}),
    )


def submit(client: Client) -> Job:
    return expect(create_job.sync(client=client, body=greeting()), JobAnswer).job


def events(client: Client, job_id: str) -> Iterator[object]:
    """All events of a job, page by page."""
    seq = 0
    while True:
        page = expect(list_events.sync(job_id, client=client, after_seq=seq, wait_s=5.0), EventsPage)
        for event in page.events:
            seq = event.seq
            yield event
            if isinstance(event, StreamFinishedEvent):
                return


def watch(client: Client, job_id: str) -> dict[str, object]:
    words: list[str] = []
    items = 0
    last = ""
    for event in events(client, job_id):
        if isinstance(event, ProviderChunkEvent):
            words.append(event.data.content)
        elif isinstance(event, ItemCompletedEvent):
            items += 1
        elif isinstance(event, StreamFinishedEvent):
            last = event.data.status.value
    return {"words": words, "last": last, "items": items}


def main(daemon_url: str, model_url: str) -> None:
    with Client(base_url=daemon_url, raise_on_unexpected_status=True) as client:
        profile = ProviderProfile(
            id="scripted", kind=ProviderKind.OPENAI, base_uri=model_url, default_model="m", api_key="k"
        )
        expect(upsert_provider_profile.sync(client=client, body=profile), ProviderView)
        created = submit(client)
        watched = watch(client, created.id)
        read = expect(get_job.sync(created.id, client=client), JobAnswer).job
        result: JobResult = known(read.result)

        stalled = submit(client)
        reason = CancelRequest(reason="not needed any more")
        cancelled = expect(cancel_job.sync(stalled.id, client=client, body=reason), JobAnswer).job
        error = known(cancelled.error)

        listed = expect(list_jobs.sync(client=client, label=["from:python"], limit=10), JobList).jobs
        unknown = get_job.sync_detailed("job_none", client=client)
        refused = create_job.sync_detailed(client=client, body=JobRequest(pipeline_type="none.v1"))
        if not isinstance(unknown.parsed, ErrorAnswer) or not isinstance(refused.parsed, ErrorAnswer):
            raise SystemExit("an error was expected")
        seen = {
            "created": created.status.value,
            "watched": watched,
            "text": result.items[0].data.text,
            "usage": read.usage.completion_tokens,
            "cancelled": [cancelled.status.value, error.code, error.message],
            "listed": [job.status.value for job in listed],
            "unknown": [int(unknown.status_code), unknown.parsed.error.code],
            "refused": [
                int(refused.status_code),
                refused.parsed.error.code,
                refused.parsed.error.details["known"],
            ],
        }
        if cancelled.status is not JobStatus.CANCELLED:
            raise SystemExit("the job is not cancelled")
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
