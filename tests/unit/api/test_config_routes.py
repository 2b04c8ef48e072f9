"""Profiles, pipelines and settings over the API. Virtual time."""

from __future__ import annotations

import pytest
from tests.api_setting import ApiSetting, body_of, configuration, open_api
from tests.engine_setting import Json, ScriptedRegistry, llm
from trio.testing import MockClock

from pipeline_engine.decoding import decode
from pipeline_engine.models import PipelineDef, ProviderExtra, ProviderKind, ProviderProfile
from pipeline_engine.pipelines import RegisteredPipeline

DEFINITION = {"type": "p.v1", "version": "2", "steps": [llm("a", when="true"), llm("b", depends_on=["a"])]}
PROFILE = {"id": "mine", "kind": "openai", "base_uri": "http://127.0.0.1:9", "default_model": "m"}


async def test_a_pipeline_is_put_shown_used_and_removed(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        target = "/v1/config/pipelines/p.v1"
        first = await api.ask("PUT", target, DEFINITION)
        assert (first.status, first.json["type"], first.json["version"]) == (201, "p.v1", "2")
        assert (await api.ask("PUT", target, DEFINITION)).status == 200
        shown = (await api.ask("GET", target)).json
        assert (await api.ask("GET", "/v1/config/pipelines")).json == {"pipelines": [shown], "broken_files": []}
        assert decode(shown, PipelineDef) == decode(DEFINITION, PipelineDef)
        job = (await api.ask("POST", "/v1/jobs", {"pipeline_type": "p.v1", "mode": "sync"})).json["job"]
        assert (job["status"], job["pipeline_version"]) == ("succeeded", "2")
        assert (await api.ask("DELETE", target)).status == 204
        assert (await api.ask("DELETE", target)).status == 404
        missing = await api.ask("GET", target)
        assert (missing.status, missing.error["code"]) == (404, "not_found")


async def test_files_that_cannot_be_used_stand_beside_the_definitions(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        broken = ["/etc/p.yaml: line 3: steps[0].kind: 'x' is none"]
        api.setting.pipelines.replace_fixed((), broken_files=broken)
        assert (await api.ask("GET", "/v1/config/pipelines")).json == {"pipelines": [], "broken_files": broken}


async def test_the_address_and_the_definition_name_the_same_type(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        answer = await api.ask("PUT", "/v1/config/pipelines/other.v1", DEFINITION)
        assert (answer.status, answer.error["details"]["path"]) == (400, "type")


async def test_what_a_file_defines_is_changed_in_the_file(autojump_clock: MockClock) -> None:
    fixed = RegisteredPipeline(decode(DEFINITION, PipelineDef), "/etc/p.yaml")
    async with open_api(pipelines=[fixed]) as api:
        for method, body in (("PUT", DEFINITION), ("DELETE", None)):
            answer = await api.ask(method, "/v1/config/pipelines/p.v1", body)
            assert (answer.status, "/etc/p.yaml" in answer.error["message"]) == (409, True)


async def test_a_definition_is_validated_with_every_problem(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        target = "/v1/config/pipelines/validate"
        assert (await api.ask("POST", target, DEFINITION)).json == {"valid": True, "errors": []}
        undecodable = (await api.ask("POST", target, {"type": "p", "steps": [{"id": 5, "kind": "magic"}]})).json
        assert undecodable["valid"] is False
        assert [error["path"] for error in undecodable["errors"]] == ["steps[0].id", "steps[0].kind"]
        wrong = (await api.ask("POST", target, {"type": "p", "steps": [llm("a", depends_on=["ghost"])]})).json
        assert (wrong["valid"], "ghost" in wrong["errors"][0]["message"]) == (False, True)
        assert (await api.ask("POST", target, [])).json["valid"] is False
        assert (await api.ask("POST", target, b"{")).status == 400


async def test_a_graph_is_text_of_either_kind(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        await api.ask("PUT", "/v1/config/pipelines/p.v1", DEFINITION)
        mermaid = await api.ask("GET", "/v1/config/pipelines/p.v1/graph")
        assert mermaid.body.startswith(b"flowchart TD\n")
        assert mermaid.headers["content-type"].startswith("text/plain")
        assert (await api.ask("GET", "/v1/config/pipelines/p.v1/graph?format=dot")).body.startswith(b"digraph")
        assert (await api.ask("GET", "/v1/config/pipelines/p.v1/graph?format=png")).status == 400
        assert (await api.ask("GET", "/v1/config/pipelines/none/graph")).status == 404


def calling(headers: dict[str, str], step_id: str = "a", **override: str) -> Json:
    """A definition with a step that sends these headers."""
    return {"type": "p.v1", "steps": [llm(step_id, provider_override={"headers": headers, **override})]}


async def test_a_definition_that_comes_back_as_it_was_shown_keeps_its_headers(autojump_clock: MockClock) -> None:
    target, registry = "/v1/config/pipelines/p.v1", ScriptedRegistry()

    async def sent(api: ApiSetting) -> dict[str, str]:
        await api.ask("POST", "/v1/jobs", {"pipeline_type": "p.v1", "mode": "sync"})
        return {name: value.reveal() for name, value in registry.calls[-1].target.headers.items()}

    async with open_api(registry=registry) as api:
        await api.ask("PUT", target, calling({"X-Tok": "sk-header", "X-Team": "blue"}))
        shown = (await api.ask("GET", target)).json
        assert shown["steps"][0]["provider_override"]["headers"] == {"X-Tok": "***", "X-Team": "***"}
        assert (await api.ask("POST", "/v1/config/pipelines/validate", shown)).json["valid"] is True
        assert (await api.ask("PUT", target, shown)).status == 200
        assert await sent(api) == {"X-Tok": "sk-header", "X-Team": "blue"}
        assert (await api.ask("PUT", target, calling({"X-Tok": "***", "X-Team": "red"}))).status == 200
        assert await sent(api) == {"X-Tok": "sk-header", "X-Team": "red"}


@pytest.mark.parametrize(
    "changed",
    [
        calling({"X-Other": "***"}),
        calling({"X-Tok": "***"}, "b"),
        calling({"X-Tok": "***"}, base_uri="http://elsewhere.example"),
        {
            "type": "p.v1",
            "steps": [llm("a", provider_profile_id="mine", provider_override={"headers": {"X-Tok": "***"}})],
        },
    ],
)
async def test_a_hidden_header_is_known_in_the_same_step_for_the_same_server_only(
    autojump_clock: MockClock, changed: Json
) -> None:
    async with open_api() as api:
        await api.ask("POST", "/v1/config/providers", PROFILE)
        target = "/v1/config/pipelines/p.v1"
        await api.ask("PUT", target, calling({"X-Tok": "sk-header"}))
        refused = await api.ask("PUT", target, changed)
        assert refused.status == 400
        assert refused.error["details"]["path"].startswith("steps[0].provider_override.headers.X-")
        assert "write it out" in refused.error["message"]
        told = (await api.ask("POST", "/v1/config/pipelines/validate", changed)).json
        assert (told["valid"], len(told["errors"])) == (False, 1)


async def test_a_job_of_its_own_definition_writes_its_headers_out(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        await api.ask("PUT", "/v1/config/pipelines/p.v1", calling({"X-Tok": "sk-header"}))
        refused = await api.ask("POST", "/v1/jobs", {"pipeline": calling({"X-Tok": "***"})})
        path = "pipeline.steps[0].provider_override.headers.X-Tok"
        assert (refused.status, refused.error["details"]["path"]) == (400, path)


async def test_a_profile_is_shown_without_its_secrets(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        extra = {"headers": {"X-Token": "sk-header"}, "timeout_s": 5}
        answer = await api.ask("POST", "/v1/config/providers", {**PROFILE, "api_key": "sk-key", "extra": extra})
        assert answer.json == {
            "id": "mine",
            "kind": "openai",
            "base_uri": "http://127.0.0.1:9",
            "api_key_set": True,
            "default_model": "m",
            "extra": {"headers": {"X-Token": "***"}, "timeout_s": 5.0},
        }
        listed = await api.ask("GET", "/v1/config/providers")
        assert [profile["id"] for profile in listed.json["providers"]] == ["fake", "mine"]
        assert listed.json["providers"][1] == answer.json
        assert b"sk-" not in answer.body + listed.body


async def test_a_key_does_not_follow_an_address(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        await api.ask("POST", "/v1/config/providers", {**PROFILE, "api_key": "sk-key"})
        kept = await api.ask("POST", "/v1/config/providers", {**PROFILE, "default_model": "n"})
        assert kept.json["api_key_set"] is True
        moved = await api.ask("POST", "/v1/config/providers", {**PROFILE, "base_uri": "http://127.0.0.1:10"})
        assert moved.json["api_key_set"] is False


async def test_an_address_that_is_left_out_is_the_default_of_the_kind(autojump_clock: MockClock) -> None:
    """A key is kept where that is the address which is written out, and not where the kind makes it another."""
    async with open_api() as api:

        async def has_key(**profile: str) -> bool:
            answer = await api.ask("POST", "/v1/config/providers", {"id": "mine", **profile})
            key_set: bool = answer.json["api_key_set"]
            return key_set

        assert await has_key(kind="openai", api_key="sk-key")
        assert await has_key(kind="openai", base_uri="https://api.openai.com/v1")
        assert await has_key(kind="openai")
        assert not await has_key(kind="image")


async def test_a_profile_that_comes_back_as_it_was_shown_keeps_its_headers(autojump_clock: MockClock) -> None:
    def headers_of(api: ApiSetting) -> dict[str, str]:
        profile = api.api.ready_local.registry.get("mine")
        assert profile is not None
        return {name: value.reveal() for name, value in profile.extra.headers.items()}

    async with open_api() as api:
        extra = {"headers": {"X-Token": "sk-header", "X-Team": "blue"}}
        await api.ask("POST", "/v1/config/providers", {**PROFILE, "extra": extra})
        changed = {"headers": {"X-Token": "***", "X-New": "1"}}
        await api.ask("POST", "/v1/config/providers", {**PROFILE, "extra": changed})
        assert headers_of(api) == {"X-Token": "sk-header", "X-New": "1"}
        await api.ask("POST", "/v1/config/providers", {**PROFILE, "base_uri": "http://127.0.0.1:10"})
        assert headers_of(api) == {}


@pytest.mark.parametrize(
    ("name", "changes"),
    [("X-Other", {}), ("x-token", {}), ("X-Token", {"base_uri": "http://127.0.0.1:10"}), ("X-Token", {"id": "new"})],
)
async def test_a_hidden_header_of_a_profile_that_is_not_known_is_refused(
    autojump_clock: MockClock, name: str, changes: Json
) -> None:
    async with open_api() as api:
        profile = {**PROFILE, "extra": {"headers": {"X-Token": "sk-header"}}}
        await api.ask("POST", "/v1/config/providers", profile)
        before = api.api.ready_local.registry.profiles()
        hidden = {**PROFILE, **changes, "extra": {"headers": {"X-New": "1", name: "***"}}}
        refused = await api.ask("POST", "/v1/config/providers", hidden)
        assert (refused.status, refused.error["details"]["path"]) == (400, f"extra.headers.{name}")
        assert "write it out" in refused.error["message"]
        assert api.api.ready_local.registry.profiles() == before


async def test_tools_and_servers_are_defined_in_files_only(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        tool = {"id": "rce", "kind": "local_tool", "extra": {"command": ["id"]}}
        server = {**PROFILE, "extra": {"server": {"command": ["id"], "ready": "http://127.0.0.1:9"}}}
        for body in (tool, server):
            answer = await api.ask("POST", "/v1/config/providers", body)
            assert (answer.status, answer.error["code"]) == (403, "forbidden")


async def test_no_definition_that_is_sent_changes_how_a_tool_is_started(autojump_clock: MockClock) -> None:
    extra = ProviderExtra(command=["bash", "-c", "cat"], env={"LEVEL": "1"})
    step = {"id": "t", "kind": "custom", "provider_profile_id": "shell"}
    bad = {"type": "p.v1", "steps": [{**step, "provider_override": {"env": {"BASH_ENV": "/dev/stdin"}}}]}
    good = {"type": "p.v1", "steps": [{**step, "provider_override": {"env": {"LEVEL": "2"}}}]}
    path = "steps[0].provider_override.env.BASH_ENV"
    target = "/v1/config/pipelines/p.v1"
    async with open_api() as api:
        api.setting.registry.put(ProviderProfile(id="shell", kind=ProviderKind.LOCAL_TOOL, extra=extra))
        put = await api.ask("PUT", target, bad)
        assert (put.status, put.error["details"]["path"]) == (400, path)
        sent = await api.ask("POST", "/v1/jobs", {"pipeline": bad})
        assert (sent.status, sent.error["details"]["path"]) == (400, f"pipeline.{path}")
        told = (await api.ask("POST", "/v1/config/pipelines/validate", bad)).json
        assert [error["path"] for error in told["errors"]] == [path]
        assert (await api.ask("PUT", target, good)).status == 201
        assert (await api.ask("POST", "/v1/jobs", {"pipeline": good, "dry_run": True})).status == 202


async def test_what_no_address_could_name_is_refused(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        profile = await api.ask("POST", "/v1/config/providers", {**PROFILE, "id": "a/b"})
        assert (profile.status, profile.error["details"]["path"]) == (400, "id")
        assert "must not hold a /" in profile.error["message"]
        definition = {**DEFINITION, "type": "a/b"}
        told = (await api.ask("POST", "/v1/config/pipelines/validate", definition)).json
        assert [error["path"] for error in told["errors"]] == ["type"]
        job = await api.ask("POST", "/v1/jobs", {"pipeline": definition})
        assert (job.status, job.error["details"]["path"]) == (400, "pipeline.type")


async def test_a_profile_is_removed(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        await api.ask("POST", "/v1/config/providers", PROFILE)
        assert (await api.ask("DELETE", "/v1/config/providers/mine")).status == 204
        assert (await api.ask("DELETE", "/v1/config/providers/mine")).status == 404
        assert (await api.ask("DELETE", "/v1/config/providers/fake")).status == 409
        refused = await api.ask("POST", "/v1/jobs", body_of([llm("a", provider_profile_id="mine")]))
        assert refused.status == 400


async def test_a_reload_is_shown_and_keeps_the_log_level_that_a_client_has_set(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        await api.ask("POST", "/v1/config/engine", {"log_level": "debug"})
        api.api.use_config(configuration(pipelines_dir="/pipelines", log_level="error"))
        shown = (await api.ask("POST", "/v1/config/engine", {})).json
        assert (shown["pipelines_dir"], shown["log_level"]) == (["/pipelines"], "debug")


@pytest.mark.parametrize(("given", "level"), [("debug", "debug"), ("WARN", "warning")])
async def test_the_log_level_is_changed_and_shown(autojump_clock: MockClock, given: str, level: str) -> None:
    async with open_api() as api:
        answer = await api.ask("POST", "/v1/config/engine", {"log_level": given})
        assert (answer.status, answer.json["log_level"]) == (200, level)
        assert api.log_levels == [level]
        assert (await api.ask("POST", "/v1/config/engine", {})).json == answer.json
        bad = await api.ask("POST", "/v1/config/engine", {"log_level": "loud"})
        assert (bad.status, bad.error["details"]["path"]) == (400, "log_level")
        assert api.log_levels == [level]
