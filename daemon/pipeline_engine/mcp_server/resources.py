"""The resources: definitions of pipelines, jobs with their results, artifacts."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import unquote

from mcp import MCPError
from mcp.types import (
    INVALID_PARAMS,
    BlobResourceContents,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    TextResourceContents,
)

from pipeline_engine.errors import InvalidRequestError, Problem
from pipeline_engine.mcp_server.views import (
    SCHEME,
    ArtifactView,
    answer_job,
    items_of,
    to_plain,
    uri_of_job,
    uri_of_pipeline,
    view_artifacts,
)
from pipeline_engine_sdk import AsyncPipelineEngineClient, ResultItem

JSON = "application/json"

LISTED_JOBS = 20
LISTED_ARTIFACTS = 20  # of those that a job has, when the one that was asked for is not among them
LARGEST_ARTIFACT = 8 * 1024 * 1024  # bytes

TEMPLATES = (
    ResourceTemplate(
        name="pipeline",
        title="A pipeline",
        uri_template=f"{SCHEME}pipelines/{{type}}",
        description="The definition of a registered pipeline.",
        mime_type=JSON,
    ),
    ResourceTemplate(
        name="job",
        title="A job and its result",
        uri_template=f"{SCHEME}jobs/{{job_id}}",
        description="The state of a job, its steps, and the items of its result; long texts are cut, as in get_job.",
        mime_type=JSON,
    ),
    ResourceTemplate(
        name="artifact",
        title="An artifact of a job",
        uri_template=f"{SCHEME}jobs/{{job_id}}/artifacts/{{artifact_id}}",
        description="An image or another file that a job has made.",
    ),
)


async def list_resources(client: AsyncPipelineEngineClient) -> list[Resource]:
    """All pipelines, and the newest jobs."""
    pipelines = [
        Resource(
            name=one.type,
            uri=uri_of_pipeline(one.type),
            description=one.description,
            mime_type=JSON,
        )
        for one in await client.list_pipelines()
    ]
    jobs = [
        Resource(
            name=job.id,
            uri=uri_of_job(job.id),
            description=f"A job of {job.pipeline_type}: {job.status}, created {job.created_at}",
            mime_type=JSON,
        )
        for job in (await client.list_jobs(limit=LISTED_JOBS)).jobs
    ]
    return [*pipelines, *jobs]


async def read_resource(client: AsyncPipelineEngineClient, uri: str) -> ReadResourceResult:
    """Raises MCPError for what is no resource, and the errors of the SDK."""
    match _parts_of(uri):
        case ["pipelines", pipeline_type]:
            return _json(uri, (await client.get_pipeline(pipeline_type)).to_dict())
        case ["jobs", job_id]:
            return _json(uri, to_plain(answer_job(await client.get_job(job_id))))
        case ["jobs", job_id, "artifacts", artifact_id]:
            return await _read_artifact(client, uri, job_id, artifact_id)
        case _:
            known = ", ".join(template.uri_template for template in TEMPLATES)
            raise MCPError(INVALID_PARAMS, f"There is no resource {uri}; there are {known}", {"uri": uri})


async def find_artifact(client: AsyncPipelineEngineClient, job_id: str, artifact_id: str) -> tuple[ArtifactView, str]:
    """The artifact, and the id of the step that made it: in the job's result, or among what it has finished so far.

    Raises NotFound when there is no such job, InvalidRequestError when the job has no such artifact.
    """
    items = items_of(await client.get_job(job_id))
    if (found := _find(job_id, items, artifact_id)) is not None:
        return found
    made = [checkpoint.result for checkpoint in await client.list_checkpoints(job_id)]
    if (found := _find(job_id, made, artifact_id)) is not None:
        return found
    ids = sorted({artifact.artifact_id for item in made for artifact in view_artifacts(job_id, item)})
    known = f"it has {', '.join(ids[:LISTED_ARTIFACTS])}" if ids else "it has none"
    raise InvalidRequestError([Problem("artifact_id", f"the job has no artifact {artifact_id}; {known}")])


def _find(job_id: str, items: Iterable[ResultItem], artifact_id: str) -> tuple[ArtifactView, str] | None:
    for item in items:
        for artifact in view_artifacts(job_id, item):
            if artifact.artifact_id == artifact_id:
                return artifact, item.step_id
    return None


async def _read_artifact(
    client: AsyncPipelineEngineClient, uri: str, job_id: str, artifact_id: str
) -> ReadResourceResult:
    artifact, _ = await find_artifact(client, job_id, artifact_id)
    if artifact.bytes > LARGEST_ARTIFACT:
        message = f"The artifact has {artifact.bytes} bytes; {LARGEST_ARTIFACT} is the most that a resource may have"
        raise MCPError(INVALID_PARAMS, message, {"uri": uri})
    data = await client.get_artifact(job_id, artifact_id)
    blob = base64.b64encode(data).decode()
    contents = BlobResourceContents(uri=uri, mime_type=artifact.mime_type or None, blob=blob)
    return ReadResourceResult(contents=[contents])


def _parts_of(uri: str) -> Sequence[str]:
    path = uri.removeprefix(SCHEME)
    return [] if path == uri else [unquote(part) for part in path.split("/") if part]


def _json(uri: str, value: dict[str, Any]) -> ReadResourceResult:
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return ReadResourceResult(contents=[TextResourceContents(uri=uri, mime_type=JSON, text=text)])
