"""What the tools and resources of the MCP server answer: the official client, and a real daemon behind the server."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from mcp import Client, MCPError
from mcp.types import BlobResourceContents, ImageContent, ResourceLink, TextResourceContents
from tests.daemon_process import DaemonProcess
from tests.mcp_setting import SLOW, WORDS, agent_in_process, call, text_of
from tests.scripted_server import Reply, open_server

from pipeline_engine_sdk import AsyncPipelineEngineClient

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(50))


@pytest.fixture
async def agent(engine: AsyncPipelineEngineClient) -> AsyncIterator[Client]:
    async with agent_in_process(engine) as client:
        yield client


async def test_tools_tell_what_they_take_give_and_touch(agent: Client) -> None:
    tools = {tool.name: tool for tool in (await agent.list_tools()).tools}
    for tool in tools.values():
        for schema in (tool.input_schema, tool.output_schema):
            assert schema is not None
            jsonschema.Draft202012Validator.check_schema(schema)
            assert schema["type"] == "object"
        assert all("description" in one for one in tool.input_schema["properties"].values()), tool.name
        assert (tool.title, tool.description) != (None, None)
    hints = {
        name: (tool.annotations.read_only_hint, tool.annotations.destructive_hint)
        for name, tool in tools.items()
        if tool.annotations
    }
    starts = dict.fromkeys(["run_pipeline", "submit_job", "rerun_job"], (False, False))
    reads = dict.fromkeys(
        ["list_pipelines", "get_pipeline", "validate_pipeline", "get_job", "get_items", "list_jobs", "get_job_events"],
        (True, None),
    )
    assert hints == {**starts, **reads, "get_artifact": (True, None), "cancel_job": (False, True)}


async def test_output_is_the_same_as_text_and_fits_its_schema(agent: Client) -> None:
    schemas = {tool.name: tool.output_schema for tool in (await agent.list_tools()).tools}
    job_id = (await call(agent, "run_pipeline", **WORDS))["job"]["id"]
    calls: dict[str, dict[str, Any]] = {
        "run_pipeline": WORDS,
        "submit_job": WORDS,
        "list_jobs": {},
        "list_pipelines": {},
        "get_pipeline": {"pipeline_type": "words.v1"},
        "validate_pipeline": {"pipeline": {"type": "x", "steps": []}},
        **{one: {"job_id": job_id} for one in ("get_job", "get_items", "cancel_job", "rerun_job", "get_job_events")},
    }
    assert set(schemas) - set(calls) == {"get_artifact"}
    for name, arguments in calls.items():
        result = await agent.call_tool(name, arguments)
        assert json.loads(text_of(result)) == result.structured_content
        jsonschema.validate(result.structured_content, schemas[name] or {})


async def test_pipelines_are_listed_shown_and_checked(agent: Client) -> None:
    listed = await call(agent, "list_pipelines", contains="counts")
    assert listed == {
        "pipelines": [
            {
                "type": "words.v1",
                "version": "1",
                "description": "Counts sources",
                "steps": ["each (map, fanout)", "count (reduce, single)*"],
            }
        ],
        "total": 1,
    }
    shown = await call(agent, "get_pipeline", pipeline_type="words.v1")
    assert [step["id"] for step in shown["pipeline"]["steps"]] == ["each", "count"]
    assert await call(agent, "validate_pipeline", pipeline=shown["pipeline"]) == {"valid": True}
    checked = await call(agent, "validate_pipeline", pipeline={"type": "x", "steps": [{"id": "a", "kind": "magic"}]})
    assert (checked["valid"], checked["errors"][0]["path"]) == (False, "steps[0].kind")


async def test_a_definition_can_be_run_without_being_registered(agent: Client) -> None:
    step = {"id": "a", "kind": "map", "mode": "fanout", "export": True, "config": {"map": "parse", "format": "json"}}
    # Some clients send objects as JSON texts.
    pipeline = json.dumps({"type": "inline.v1", "steps": [step]})
    answer = await call(agent, "run_pipeline", pipeline=pipeline, sources=[{"content": '{"n": [1, 2]}'}])
    assert answer["items"][0]["json"] == {"n": [1, 2]}
    assert "text" not in answer["items"][0]


async def test_a_job_that_takes_long_goes_on_without_the_call(agent: Client, engine: AsyncPipelineEngineClient) -> None:
    answer = await call(agent, "run_pipeline", **SLOW, wait_s=0.2)
    assert answer["job"]["status"] == "running"
    assert "get_job" in answer["note"]
    job_id = answer["job"]["id"]
    assert (await call(agent, "get_job", job_id=job_id, wait_s=0.1))["job"]["status"] == "running"
    assert (await call(agent, "get_items", job_id=job_id))["note"] == "The job is running: it has no result yet."
    assert (await engine.get_job(job_id)).status == "running"
    cancelled = await call(agent, "cancel_job", job_id=job_id, reason="enough")
    assert (cancelled["job"]["status"], cancelled["job"]["error"]["code"]) == ("cancelled", "cancelled")


async def test_a_job_is_submitted_waited_for_found_and_run_again(agent: Client) -> None:
    job_id = (await call(agent, "submit_job", **WORDS, labels={"via": "agent"}))["job"]["id"]
    assert (await call(agent, "get_job", job_id=job_id, wait_s=10))["items"][0]["text"] == "2 sources"
    listed = await call(agent, "list_jobs", labels={"via": "agent"}, status="succeeded")
    assert [job["id"] for job in listed["jobs"]] == [job_id]
    again = await call(agent, "rerun_job", job_id=job_id, reuse_upstream=True, from_step_id="count")
    done = await call(agent, "get_job", job_id=again["job"]["id"], wait_s=10)
    assert done["job"]["parent_job_id"] == job_id
    assert done["job"]["steps"][0]["reused_from"] == job_id
    other = await call(agent, "rerun_job", job_id=job_id, sources=[{"content": "only one"}])
    done = await call(agent, "get_job", job_id=other["job"]["id"], wait_s=10)
    assert done["items"][0]["text"] == "1 sources"


async def test_events_come_in_pages_and_chunks_on_request(agent: Client) -> None:
    answer = await call(agent, "run_pipeline", pipeline_type="shell.v1", options={"script": "echo out"})
    job_id, last_seq = answer["job"]["id"], answer["job"]["last_seq"]
    seen: list[dict[str, Any]] = []
    seq = 0
    while (page := await call(agent, "get_job_events", job_id=job_id, after_seq=seq, limit=3))["events"]:
        assert len(page["events"]) <= 3
        seen += page["events"]
        seq = page["next_after_seq"]
    assert (seq, page["last_seq"]) == (last_seq, last_seq)
    names = [event["event"] for event in seen]
    assert (names[0], names[-1], "provider_chunk" in names) == ("job_queued", "stream_finished", False)
    page = await call(agent, "get_job_events", job_id=job_id, include_chunks=True)
    assert len(page["events"]) == last_seq == len(seen) + 1


async def test_long_results_are_cut_and_come_in_pages(agent: Client) -> None:
    long = "".join(f"line {number}\n" for number in range(20_000))
    step = {"id": "a", "kind": "map", "mode": "fanout", "export": True, "config": {"map": "identity"}}
    arguments = {
        "pipeline": {"type": "echo.v1", "steps": [step]},
        "sources": [{"content": "short"}, {"content": long}, *({"content": "x"} for _ in range(60))],
    }
    answer = await call(agent, "run_pipeline", **arguments)
    assert len(json.dumps(answer)) < 60_000
    assert (answer["items_total"], len(answer["items"])) == (62, 50)
    assert answer["items"][0]["text"] == "short"
    assert "first=50" in answer["note"]
    job_id = answer["job"]["id"]
    item = answer["items"][1]
    text = item["text"]
    while "next_offset" in item:
        page = await call(agent, "get_items", job_id=job_id, first=1, limit=1, offset=item["next_offset"])
        [item] = page["items"]
        text += item["text"]
    assert text == long
    page = await call(agent, "get_items", job_id=job_id, first=50, limit=100)
    assert [item["index"] for item in page["items"]] == list(range(50, 62))
    assert "note" not in page


async def test_a_failed_job_is_an_error_that_tells_where(agent: Client) -> None:
    arguments = {"pipeline_type": "shell.v1", "options": {"script": "echo broken >&2; exit 3"}}
    result = await agent.call_tool("run_pipeline", arguments)
    assert result.is_error
    assert result.structured_content is not None
    error = result.structured_content["job"]["error"]
    assert (error["code"], error["details"]["exit_code"], error["details"]["stderr"]) == ("tool_failed", 3, "broken\n")


async def test_what_is_wrong_is_told_to_the_model(agent: Client) -> None:
    two_texts = {**WORDS, "sources": [{"content": "a", "content_base64": "YQ=="}]}
    wrong: list[tuple[str, dict[str, Any], list[str]]] = [
        ("run_pipeline", {"pipeline_type": "none"}, ["words.v1", "unknown_pipeline"]),
        ("run_pipeline", {}, ["pipeline_type"]),
        ("run_pipeline", {**WORDS, "wait_s": -1, "wiat_s": 1}, ["wait_s: ", "wiat_s: unknown key"]),
        ("submit_job", {"pipeline": {"type": "x", "steps": [{"id": "a", "kind": "llm"}]}}, ["steps[0]", "problems"]),
        ("submit_job", two_texts, ["sources[0]", "more than one"]),
        ("submit_job", {**WORDS, "sources": [{"path": "/etc/passwd"}]}, ["sources[0].path", "--allow-files"]),
        ("get_job", {"job_id": "job_none"}, ["job_none"]),
        ("get_job", {}, ["job_id: is required"]),
        ("get_job_events", {"job_id": "job_none"}, ["job_none"]),
        ("list_jobs", {"status": "lost"}, ["status", "queued"]),
        ("rerun_job", {"job_id": "job_none"}, ["job_none"]),
    ]
    for tool, arguments, words in wrong:
        result = await agent.call_tool(tool, arguments)
        assert result.is_error
        assert [word for word in words if word not in text_of(result)] == [], text_of(result)
    with pytest.raises(MCPError, match="run_pipeline"):
        await agent.call_tool("unknown", {})


async def make_artifact(agent: Client, engine: AsyncPipelineEngineClient, content: bytes) -> tuple[str, dict[str, Any]]:
    """The id of a job that has made a file of that content, and what its item tells of it."""
    step = {"id": "i", "kind": "image", "provider_profile_id": "draws", "output_type": "image", "export": True}
    pipeline = {"type": "image.v1", "steps": [{**step, "prompt": {"user": "a dot"}}]}
    async with open_server(Reply.json({"data": [{"b64_json": base64.b64encode(content).decode()}]})) as server:
        profile = {"id": "draws", "kind": "image", "base_uri": server.url, "default_model": "m"}
        await engine.upsert_provider_profile(profile)
        made = await call(agent, "run_pipeline", pipeline=pipeline)
    [artifact] = made["items"][0]["artifacts"]
    return made["job"]["id"], artifact


async def test_images_are_shown(agent: Client, engine: AsyncPipelineEngineClient) -> None:
    job_id, artifact = await make_artifact(agent, engine, PNG)
    result = await agent.call_tool("get_artifact", {"job_id": job_id, "artifact_id": artifact["artifact_id"]})
    assert result.structured_content == {"artifact": artifact, "step_id": "i"}
    image = result.content[1]
    assert isinstance(image, ImageContent)
    assert (base64.b64decode(image.data), image.mime_type) == (PNG, "image/png")
    missing = await agent.call_tool("get_artifact", {"job_id": job_id, "artifact_id": "0" * 64})
    assert artifact["artifact_id"] in text_of(missing)


async def test_large_images_are_linked_and_read_as_resources(agent: Client, engine: AsyncPipelineEngineClient) -> None:
    large = PNG + bytes(4_000_000)
    job_id, artifact = await make_artifact(agent, engine, large)
    result = await agent.call_tool("get_artifact", {"job_id": job_id, "artifact_id": artifact["artifact_id"]})
    link = result.content[1]
    assert isinstance(link, ResourceLink)
    [contents] = (await agent.read_resource(link.uri)).contents
    assert isinstance(contents, BlobResourceContents)
    assert base64.b64decode(contents.blob) == large


async def test_pipelines_and_jobs_are_resources(agent: Client) -> None:
    job_id = (await call(agent, "run_pipeline", **WORDS))["job"]["id"]
    uris = [resource.uri for resource in (await agent.list_resources()).resources]
    assert {f"pipeline-engine://jobs/{job_id}", "pipeline-engine://pipelines/words.v1"} <= set(uris)
    templates = (await agent.list_resource_templates()).resource_templates
    assert "pipeline-engine://jobs/{job_id}" in [template.uri_template for template in templates]
    read = []
    for uri in (f"pipeline-engine://jobs/{job_id}", "pipeline-engine://pipelines/words.v1"):
        [contents] = (await agent.read_resource(uri)).contents
        assert isinstance(contents, TextResourceContents)
        read.append(json.loads(contents.text))
    assert read[0]["items"][0]["text"] == "2 sources"
    assert read[1]["description"] == "Counts sources"
    for uri, words in {
        "pipeline-engine://jobs/job_none": "job_none",
        "pipeline-engine://jobs": "pipelines/{type}",
        "file:///etc/passwd": "no resource",
    }.items():
        with pytest.raises(MCPError, match=words):
            await agent.read_resource(uri)


async def test_read_only_offers_nothing_that_changes_anything(engine: AsyncPipelineEngineClient) -> None:
    async with agent_in_process(engine, read_only=True) as agent:
        names = {tool.name for tool in (await agent.list_tools()).tools}
        assert names.isdisjoint({"run_pipeline", "submit_job", "rerun_job", "cancel_job"})
        with pytest.raises(MCPError, match="no tool 'cancel_job'"):
            await agent.call_tool("cancel_job", {"job_id": "job_1"})
        assert (await call(agent, "list_pipelines"))["total"] == 2


async def test_files_are_read_only_where_it_is_allowed(
    daemon: DaemonProcess, engine: AsyncPipelineEngineClient, tmp_path: Path
) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "note.txt").write_text("from a file", encoding="utf-8")
    (allowed / "link.txt").symlink_to(daemon.home / "config.toml")
    step = {"id": "a", "kind": "map", "mode": "fanout", "export": True}
    template = {"map": "template", "template": "{{ source.label }}: {{ source.content }}"}
    pipeline = {"type": "echo.v1", "steps": [{**step, "config": template}]}
    async with agent_in_process(engine, allowed) as agent:
        for name in ("note.txt", str(allowed / "note.txt")):
            answer = await call(agent, "run_pipeline", pipeline=pipeline, sources=[{"path": name}])
            assert answer["items"][0]["text"] == "note.txt: from a file"
        for name in ("link.txt", "../outside.txt", str(daemon.home / "config.toml")):
            result = await agent.call_tool("run_pipeline", {"pipeline": pipeline, "sources": [{"path": name}]})
            assert result.is_error
            assert "outside of what may be read" in text_of(result)
        offered = {tool.name: json.dumps(tool.input_schema) for tool in (await agent.list_tools()).tools}
    async with agent_in_process(engine) as agent:
        withheld = {tool.name: json.dumps(tool.input_schema) for tool in (await agent.list_tools()).tools}
    assert ('"path"' in offered["submit_job"], '"path"' in withheld["submit_job"]) == (True, False)
