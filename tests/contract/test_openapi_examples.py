"""The examples of the OpenAPI document fit its schemas, the requests are taken, and the answers are what comes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import trio
from tests.api_setting import open_api
from tests.contract.test_golden_documents import settle
from tests.engine_setting import Json, Script, llm
from trio.testing import MockClock

from pipeline_engine.api.errors import STATUSES
from pipeline_engine.api.openapi import describe
from pipeline_engine.api.routes import ROUTES
from pipeline_engine.decoding import decode, to_json
from pipeline_engine.engine import EngineLimits
from pipeline_engine.models import ProviderProfile

GOLDEN = Path(__file__).parent / "golden"
DOCUMENT: Json = json.loads(to_json(describe(ROUTES)))
OPERATIONS: dict[str, Json] = {
    call["operationId"]: call for calls in DOCUMENT["paths"].values() for call in calls.values()
}
#: Answers that an example would not make clearer: bytes, and the document itself.
WITHOUT_EXAMPLE = {"get_artifact", "get_openapi"}


def closed(schema: Any) -> Any:
    """The schema with all keys refused that it does not name: what is shown must be described."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: closed(part) for key, part in schema.items()}
    return {"additionalProperties": False, **parts} if isinstance(schema.get("properties"), dict) else parts


COMPONENTS = {"schemas": closed(DOCUMENT["components"]["schemas"])}


def problems(value: Any, schema: Json) -> list[str]:
    validator = jsonschema.Draft202012Validator(
        {**schema, "components": COMPONENTS}, format_checker=jsonschema.FormatChecker()
    )
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def bodies() -> Iterator[tuple[str, Json]]:
    """Each body of the document: what it is of, and its media type object."""
    for name, call in OPERATIONS.items():
        if "requestBody" in call:
            yield name, call["requestBody"]["content"]["application/json"]
        for status, response in call["responses"].items():
            for media_type, body in response.get("content", {}).items():
                if name not in WITHOUT_EXAMPLE:
                    yield f"{name} {status} {media_type}", body
    yield "error", DOCUMENT["components"]["responses"]["Error"]["content"]["application/json"]


def example(operation: str, status: int | None = None, name: str = "example") -> Any:
    """The body of a request, or of an answer."""
    call = OPERATIONS[operation]
    place = call["requestBody"] if status is None else call["responses"][str(status)]
    return place["content"]["application/json"]["examples"][name]["value"]


@pytest.mark.parametrize(("name", "body"), list(bodies()), ids=lambda value: value if isinstance(value, str) else "")
def test_every_body_has_an_example_that_fits_its_schema(name: str, body: Json) -> None:
    assert body["examples"]
    for shown in body["examples"].values():
        assert problems(shown["value"], body["schema"]) == []


def test_every_error_that_an_operation_may_give_has_an_example() -> None:
    examples = DOCUMENT["components"]["responses"]["Error"]["content"]["application/json"]["examples"]
    # No operation of the document answers 405: it is for methods that are not in it.
    assert set(examples) == set(STATUSES) - {"method_not_allowed"}
    assert all(shown["value"]["error"]["code"] == code for code, shown in examples.items())


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("job.json", "JobAnswer"),
        ("cancelled.json", "JobAnswer"),
        ("jobs.json", "JobList"),
        ("checkpoints.json", "CheckpointList"),
        ("metrics.json", "ProviderMetrics"),
        ("profile.json", "ProviderView"),
        ("error_invalid_request.json", "ErrorAnswer"),
        ("error_unknown_pipeline.json", "ErrorAnswer"),
    ],
)
def test_real_answers_hold_what_the_document_names_and_nothing_else(name: str, schema: str) -> None:
    value = json.loads((GOLDEN / name).read_text(encoding="utf-8").replace('"TIME"', '"2026-01-31T09:00:00.000000Z"'))
    assert problems(value, {"$ref": f"#/components/schemas/{schema}"}) == []


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.ndjson")), ids=lambda path: path.stem)
def test_every_line_of_a_stream_is_one_of_the_events(path: Path) -> None:
    schema = OPERATIONS["follow_job"]["responses"]["200"]["content"]["application/x-ndjson"]["schema"]
    lines = path.read_text(encoding="utf-8").replace('"TIME"', '"2026-01-31T09:00:00.000000Z"').splitlines()
    assert lines
    mapping = COMPONENTS["schemas"]["EventLine"]["discriminator"]["mapping"]
    for line in map(json.loads, lines):
        assert problems(line, schema) == []
        assert problems(line, {"$ref": mapping[line["event"]]}) == []


async def test_the_examples_are_what_the_daemon_takes_and_answers(autojump_clock: MockClock) -> None:
    limits = EngineLimits(max_running_jobs=1)
    async with open_api(scripts={"silent": [Script(first=20)]}, limits=limits) as api:
        finished = (await api.ask("POST", "/v1/jobs", example("create_job", name="inline"))).json
        assert shape(finished) == shape(example("create_job", 200))
        address = f"/v1/jobs/{finished['job']['id']}"
        assert shape((await api.ask("GET", address)).json) == shape(example("get_job", 200))
        assert shape((await api.ask("GET", "/v1/jobs")).json) == shape(example("list_jobs", 200))
        checkpoints = (await api.ask("GET", f"{address}/checkpoints")).json["checkpoints"]
        assert shape({"checkpoints": checkpoints[-1:]}) == shape(example("list_checkpoints", 200))
        lines = [shape(event) for event in await api.events(finished["job"]["id"])]
        streamed = OPERATIONS["follow_job"]["responses"]["200"]["content"]["application/x-ndjson"]["examples"]
        assert shape(streamed["item"]["value"]) == lines[7]
        assert shape(streamed["end"]["value"]) == lines[11]

        await api.submit([llm("a", "silent")])
        await trio.sleep(1)
        queued = (await api.ask("POST", "/v1/jobs", {**example("create_job", name="inline"), "mode": "async"})).json
        assert shape(queued) == shape(example("create_job", 202))
        reason = example("cancel_job", name="reason")
        cancelled = await api.ask("POST", f"/v1/jobs/{queued['job']['id']}/cancel", reason)
        assert shape(cancelled.json) == shape(example("cancel_job", 200))
        for name in ("all", "step"):
            rerun = await api.ask("POST", f"{address}/rerun", example("rerun_job", name=name))
            assert rerun.status == 202
            if name == "all":
                assert shape(rerun.json) == shape(example("rerun_job", 202))


async def test_the_examples_of_definitions_and_profiles_are_taken(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        for name in ("ollama", "openai"):
            answer = await api.ask("POST", "/v1/config/providers", example("upsert_provider_profile", name=name))
            assert answer.status == 200
        await api.ask("POST", "/v1/config/providers", example("upsert_provider_profile", name="ollama"))
        listed = (await api.ask("GET", "/v1/config/providers")).json["providers"]
        assert [example("upsert_provider_profile", 200)] == [one for one in listed if one["id"] == "workstation"]

        ollama = decode({"id": "default-ollama", "kind": "ollama"}, ProviderProfile)
        await api.api.ready_local.catalog.put_profile(ollama)
        definition = example("put_pipeline", name="minutes")
        target = "/v1/config/pipelines/minutes.v1"
        assert (await api.ask("PUT", target, definition)).json == example("put_pipeline", 201)
        assert (await api.ask("PUT", target, definition)).status == 200
        assert (await api.ask("GET", target)).json == example("get_pipeline", 200)
        drawn = OPERATIONS["get_pipeline_graph"]["responses"]["200"]["content"]["text/plain"]["examples"]
        assert (await api.ask("GET", f"{target}/graph")).body.decode() == drawn["example"]["value"]

        levels = example("validate_pipeline", name="levels")
        good = await api.ask("POST", "/v1/config/pipelines/validate", levels)
        assert good.json == example("validate_pipeline", 200, "good")
        bad = await api.ask("POST", "/v1/config/pipelines/validate", {**levels, "steps": levels["steps"][1:]})
        assert bad.json == example("validate_pipeline", 200, "bad")
        registered = await api.ask("POST", "/v1/jobs", example("create_job", name="registered"))
        assert registered.status == 202
        settings = (await api.ask("POST", "/v1/config/engine", example("update_engine_config", name="debug"))).json
        assert example("update_engine_config", 200).items() <= settings.items()


def shape(value: Any) -> Any:
    """A document without what differs from run to run; all jobs have one id."""
    fixed = settle(value, {})
    text = json.dumps(fixed, sort_keys=True)
    parsed = json.loads(text.replace("JOB-1", "JOB-0"))
    for holder in (parsed, parsed.get("job", {})):
        if isinstance(holder.get("result"), dict):
            holder["result"]["meta"] = {}
    return parsed
