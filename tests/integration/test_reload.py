"""Bringing changed files into force, with a real engine and real files."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from tests.engine_setting import Json, job_request
from tests.reload_setting import PROFILE, Setting, definition, model_of, open_setting, until, write

from pipeline_engine.config import LogLevel
from pipeline_engine.errors import InvalidRequestError, UnknownPipelineError
from pipeline_engine.models import ProviderKind, ProviderProfile
from pipeline_engine.providers.confinement import landlock_version


async def test_definitions_follow_their_files(tmp_path: Path) -> None:
    async with open_setting(tmp_path) as setting:
        file = setting.pipelines / "p.yaml"
        for version in ("1", "2"):
            write(file, definition(version))
            await setting.reloader.reload()
            assert setting.version_of("p.v1") == version
        file.unlink()
        await setting.reloader.reload()
        assert setting.version_of("p.v1") is None


async def test_a_bad_file_keeps_its_last_good_version_and_says_why_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_setting(tmp_path) as setting:
        file = setting.pipelines / "p.yaml"
        write(file, definition("1"))
        await setting.reloader.reload()
        write(file, "type: p.v1\nsteps: [{id: a, kind: magic}]\n")
        write(setting.pipelines / "q.yaml", definition("1", pipeline_type="q.v1"))
        with caplog.at_level(logging.ERROR):
            await setting.reloader.reload()
            await setting.reloader.reload()
        assert (setting.version_of("p.v1"), setting.version_of("q.v1")) == ("1", "1")
        [record] = caplog.records
        assert f"{file}: line 2: steps[0].kind" in record.getMessage()
        assert "magic" in record.getMessage()
        write(file, definition("2"))
        await setting.reloader.reload()
        assert setting.version_of("p.v1") == "2"


async def test_a_file_that_cannot_be_used_is_named_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_setting(tmp_path) as setting:
        pipelines, good, bad = (
            setting.local.catalog.pipelines,
            setting.pipelines / "p.yaml",
            setting.pipelines / "q.yaml",
        )
        write(good, definition("1"))
        write(bad, "type: q.v1\nsteps:\n- {id: a, kind: magic}\n- {id: 5, kind: map}\n")
        await setting.reloader.reload()
        words = rf"; 1 definition file cannot be used: {re.escape(str(bad))}: line 3: steps\[0\]\.kind: [^\n]*$"
        with pytest.raises(UnknownPipelineError, match=words):
            pipelines.find("q.v1")
        # One whose last good version stays in force is not in order either.
        write(good, "type: p.v1\nsteps: []\n")
        await setting.reloader.reload()
        assert setting.version_of("p.v1") == "1"
        assert len(pipelines.broken_files) == 2
        write(good, definition("2"))
        write(bad, definition("2", pipeline_type="q.v1"))
        caplog.clear()
        with caplog.at_level(logging.INFO):
            await setting.reloader.reload()
            await setting.reloader.reload()
        told = sorted(record.getMessage() for record in caplog.records)
        assert told == [f"{file} can be used again" for file in (good, bad)]
        assert not pipelines.broken_files
        with pytest.raises(UnknownPipelineError) as caught:
            pipelines.find("r.v1")
        assert "cannot be used" not in caught.value.message


HOSTILE_SCHEMA = 'options_schema: {properties: {a: {pattern: "a{99999999999}"}}}\n'
HOSTILE_PATTERN = f"{{map: identity, split: {{by: regex, pattern: '{'(' * 400}{')' * 400}'}}}}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text + HOSTILE_SCHEMA, "options_schema: is not a JSON Schema"),
        (
            lambda text: text.replace("{map: identity}", HOSTILE_PATTERN + ", mode: fanout"),
            "pattern: is not a regular expression",
        ),
    ],
)
async def test_a_file_made_to_break_its_check_keeps_its_last_good_version(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[str], str], words: str
) -> None:
    async with open_setting(tmp_path) as setting:
        file = setting.pipelines / "p.yaml"
        write(file, definition("1"))
        await setting.reloader.reload()
        write(file, change(definition("2")))
        with caplog.at_level(logging.ERROR):
            await setting.reloader.reload()
        assert setting.version_of("p.v1") == "1"
        [record] = caplog.records
        assert words in record.getMessage()


async def test_a_reload_that_fails_in_an_unknown_way_changes_nothing_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> NoReturn:
        raise RecursionError("without end")

    async with open_setting(tmp_path) as setting:
        file = setting.pipelines / "p.yaml"
        write(file, definition("1"))
        await setting.reloader.reload()
        write(file, definition("2"))
        monkeypatch.setattr(setting.reloader, "_load", broken)
        with caplog.at_level(logging.ERROR):
            await setting.reloader.reload()
            assert setting.version_of("p.v1") == "2"
            monkeypatch.setattr("pipeline_engine.reload.configured_pipelines", broken)
            write(file, definition("3"))
            await setting.reloader.use_definitions()
        assert setting.version_of("p.v1") == "2"
        assert [record.getMessage() for record in caplog.records] == [
            "the configuration stays as it was: RecursionError: without end",
            "the definitions stay as they were: RecursionError: without end",
        ]
        assert all(record.exc_info for record in caplog.records)


async def test_a_directory_that_cannot_be_read_takes_nothing_away(tmp_path: Path) -> None:
    async with open_setting(tmp_path) as setting:
        write(setting.pipelines / "p.yaml", definition("1"))
        await setting.reloader.reload()
        setting.pipelines.rename(tmp_path / "elsewhere")
        await setting.reloader.reload()
        assert setting.version_of("p.v1") == "1"


async def test_profiles_follow_the_configuration(tmp_path: Path) -> None:
    async with open_setting(tmp_path) as setting:
        registry = setting.local.registry
        for model in ("one", "two"):
            write(setting.config_file, PROFILE % model)
            await setting.reloader.reload()
            profile = registry.get("mine")
            assert profile is not None
            assert profile.default_model == model
        write(setting.config_file, "")
        await setting.reloader.reload()
        assert registry.get("mine") is None
        assert registry.get("default-ollama") is not None


async def test_a_profile_and_a_definition_that_needs_it_may_come_together(tmp_path: Path) -> None:
    async with open_setting(tmp_path) as setting:
        put = ProviderProfile(id="put", kind=ProviderKind.OPENAI, base_uri="http://127.0.0.1:9")
        await setting.local.catalog.put_profile(put)
        write(setting.config_file, PROFILE % "m")
        write(setting.pipelines / "p.yaml", definition("1", profile="mine"))
        write(setting.pipelines / "q.yaml", definition("1", pipeline_type="q.v1", profile="put"))
        await setting.reloader.reload()
        assert (setting.version_of("p.v1"), setting.version_of("q.v1")) == ("1", "1")


async def test_a_profile_that_goes_is_missed_by_the_definitions_that_need_it_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_setting(tmp_path) as setting:
        write(setting.config_file, PROFILE % "m")
        write(setting.pipelines / "p.yaml", definition("1", profile="mine"))
        await setting.reloader.reload()
        assert caplog.text == ""
        write(setting.config_file, "")
        await setting.reloader.reload()
        assert "there is no provider profile 'mine'" in caplog.text
        assert setting.version_of("p.v1") == "1"


async def test_a_bad_configuration_changes_nothing_but_definitions_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_setting(tmp_path) as setting:
        write(setting.config_file, PROFILE % "good")
        await setting.reloader.reload()
        write(setting.config_file, "[limits]\nmax_running_job = 1\n")
        write(setting.pipelines / "p.yaml", definition("1"))
        with caplog.at_level(logging.ERROR):
            await setting.reloader.reload()
        assert setting.local.registry.get("mine") is not None
        assert setting.version_of("p.v1") == "1"
        assert f"{setting.config_file}: line 2: limits.max_running_job" in caplog.text


async def test_the_log_level_changes_and_the_rest_asks_for_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_setting(tmp_path) as setting:
        write(
            setting.config_file,
            'log_level = "debug"\n[http]\nheartbeat_s = 3\n[limits]\nmax_body_bytes = 1\nmax_items = 2\n',
        )
        with caplog.at_level(logging.WARNING):
            await setting.reloader.reload()
            await setting.reloader.reload()
        assert setting.log_levels == [LogLevel.DEBUG]
        [record] = caplog.records
        assert record.getMessage().endswith("after a restart: http.heartbeat_s, limits.max_body_bytes")
        assert len(setting.configs) == 2
        shown = setting.configs[-1].settings()
        assert (shown["http.heartbeat_s"], shown["limits.max_items"], shown["log_level"]) == (15.0, 2, "debug")


async def test_the_settings_of_jobs_change_at_once(tmp_path: Path) -> None:
    async with open_setting(tmp_path) as setting:
        engine = setting.local.engine

        async def code_of(step: Json, *sources: str) -> str | None:
            job = await engine.submit(job_request([step], sources))
            job = await engine.wait(job.id)
            return job.error.code if job.error is not None else None

        fanout = {"id": "a", "kind": "map", "mode": "fanout", "config": {"map": "identity"}}
        loop = "{% for i in range(1000) %}.{% endfor %}"
        template = {"id": "a", "kind": "map", "config": {"map": "template", "template": loop}}
        handler = {"id": "a", "kind": "custom", "config": {"handler": "shown"}}
        assert await code_of(fanout, "x", "y") is None
        assert await code_of(template, "x") is None
        with pytest.raises(InvalidRequestError, match="there is no handler 'shown'"):
            await code_of(handler, "x")
        write(
            setting.config_file,
            '[limits]\nmax_items = 1\ntemplate_fuel = 100\nmax_queued_jobs = 1\n[handlers]\nshown = "builtins:repr"\n',
        )
        await setting.reloader.reload()
        assert await code_of(fanout, "x", "y") == "budget_exceeded"
        assert await code_of(template, "x") == "template_error"
        assert await code_of(handler, "x") is None


async def test_the_rules_of_retention_change_at_once(tmp_path: Path) -> None:
    async with open_setting(tmp_path) as setting:
        engine = setting.local.engine
        job = await engine.submit(job_request([{"id": "a", "kind": "map", "config": {"map": "identity"}}], ["x"]))
        await engine.wait(job.id)
        write(setting.config_file, "[store.retention]\nmax_jobs = 0\n")
        await setting.reloader.reload()
        await until(lambda: setting.local.access.store.head(job.id) is None)


async def test_a_configuration_file_that_is_gone_stays_in_force_until_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_setting(tmp_path, as_user_file=True) as setting:
        file, away = setting.config_file, tmp_path / "away"
        write(file, PROFILE % "one")
        await setting.reloader.reload()
        with caplog.at_level(logging.INFO):
            file.rename(away)
            await setting.reloader.reload()
            write(setting.pipelines / "p.yaml", definition("1", profile="mine"))
            await setting.reloader.reload()
            assert (model_of(setting), setting.version_of("p.v1")) == ("one", "1")
            write(file, PROFILE % "two")
            await setting.reloader.reload()
            assert model_of(setting) == "two"
        first, second = [record.getMessage() for record in caplog.records]
        assert first.startswith(f"the configuration stays as it was: {file}: is gone; to take its settings away, ")
        assert second == "the configuration can be used again"
        write(file, "")
        await setting.reloader.reload()
        assert model_of(setting) is None


@pytest.mark.parametrize("bad", [None, "[limits]\nmax_running_job = 1\n"])
async def test_why_a_configuration_is_not_used_is_told_again_when_another_file_changes_and_to_who_asks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: str | None
) -> None:
    async with open_setting(tmp_path, as_user_file=True) as setting:
        if bad is None:
            setting.config_file.unlink()
        else:
            write(setting.config_file, bad)

        async def told(*, asked: bool = False) -> int:
            caplog.clear()
            assert not await setting.reloader.reload(asked=asked)
            return caplog.text.count("the configuration stays as it was")

        assert [await told(), await told(), await told(asked=True)] == [1, 0, 1]
        write(tmp_path / "config.toml", PROFILE % "one")
        assert [await told(), await told()] == [1, 0]
        write(setting.pipelines / "p.yaml", definition("1"))
        assert (await told(), setting.version_of("p.v1")) == (0, "1")
        write(setting.config_file, "")
        assert await setting.reloader.reload()
        assert model_of(setting) == "one"


async def test_a_definition_whose_link_leads_nowhere_stays_in_force_and_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_setting(tmp_path) as setting:
        write(tmp_path / "p.yaml", definition("1"))
        (setting.pipelines / "p.yaml").symlink_to(tmp_path / "p.yaml")
        await setting.reloader.reload()
        (tmp_path / "p.yaml").unlink()
        await setting.reloader.reload()
        assert setting.version_of("p.v1") == "1"
        assert f"{setting.pipelines / 'p.yaml'}: cannot be read: No such file or directory" in caplog.text


KEYED = PROFILE % "m" + 'api_key_file = "key"\n'
READER = """[[providers]]
id = "reader"
kind = "local_tool"
[providers.extra]
command = ["sh", "-c", "cat %s; true"]
env = { PATH = "/usr/bin:/bin" }
"""


@pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock")
async def test_a_key_file_that_a_reload_brings_is_hidden_from_tools_that_start_later(tmp_path: Path) -> None:
    key = tmp_path / "key"
    write(key, "sk-brought-by-a-reload")
    tool = {"id": "t", "kind": "custom", "provider_profile_id": "reader", "export": True}

    async def read(setting: Setting) -> str:
        job = await setting.local.engine.submit(job_request([tool], ["x"]))
        job = await setting.local.engine.wait(job.id)
        assert job.result is not None, job.error
        return str(job.result.items[0].data["text"])

    async with open_setting(tmp_path) as setting:
        write(setting.config_file, READER % key)
        await setting.reloader.reload()
        assert await read(setting) == "sk-brought-by-a-reload"
        write(setting.config_file, READER % key + KEYED)
        await setting.reloader.reload()
        assert await read(setting) == ""
        # A profile that is gone may have calls under way: what it used stays hidden.
        write(setting.config_file, READER % key)
        await setting.reloader.reload()
        assert await read(setting) == ""
