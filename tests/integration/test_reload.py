"""Bringing changed files into force, with a real engine and real files."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
import trio
from tests.api_setting import NOWHERE
from tests.engine_setting import Json, job_request

from pipeline_engine.assembly import LocalEngine, open_engine
from pipeline_engine.config import Config, LogLevel
from pipeline_engine.config_loader import load_config
from pipeline_engine.errors import InvalidRequestError, UnknownPipelineError
from pipeline_engine.file_watch import open_file_watch
from pipeline_engine.models import ProviderKind, ProviderProfile
from pipeline_engine.providers.confinement import landlock_version
from pipeline_engine.reload import Reloader, reload_on_changes
from pipeline_engine.store.artifacts import ArtifactFiles
from pipeline_engine.store.memory import MemoryStore


@dataclass(slots=True)
class Setting:
    local: LocalEngine
    reloader: Reloader
    config_file: Path
    pipelines: Path
    log_levels: list[LogLevel] = field(default_factory=list)
    configs: list[Config] = field(default_factory=list)

    def version_of(self, pipeline_type: str) -> str | None:
        try:
            return self.local.catalog.pipelines.find(pipeline_type).definition.version
        except UnknownPipelineError:
            return None


@asynccontextmanager
async def open_setting(tmp_path: Path, *, as_user_file: bool = False) -> AsyncGenerator[Setting, None]:
    """The configuration file is one that is named, or the one that is looked for in the user's home."""
    named, pipelines = tmp_path / "config.toml", tmp_path / "pipelines"
    config_file = named
    write(named, "")
    environ = dict(NOWHERE)
    if as_user_file:
        environ["XDG_CONFIG_HOME"] = str(tmp_path / "xdg")
        config_file = tmp_path / "xdg" / "pipeline-engine" / "config.toml"
        config_file.parent.mkdir(parents=True)
    pipelines.mkdir()
    write(config_file, "")
    load = partial(load_config, environ=environ, config_file=named, overrides={"pipelines_dir": str(pipelines)})
    config = load()
    artifacts = ArtifactFiles(tmp_path / "artifacts")
    async with open_engine(config, store=MemoryStore(), artifacts=artifacts, environ={}) as local:
        levels: list[LogLevel] = []
        configs: list[Config] = []
        reloader = Reloader(
            config=config, local=local, load=load, use_log_level=levels.append, use_config=configs.append
        )
        await reloader.use_definitions()
        yield Setting(local, reloader, config_file, pipelines, levels, configs)


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def definition(version: str, *, pipeline_type: str = "p.v1", profile: str | None = None) -> str:
    step = "{id: a, kind: map, config: {map: identity}}"
    if profile is not None:
        step = f"{{id: a, kind: llm, provider_profile_id: {profile}}}"
    return f"type: {pipeline_type}\nversion: '{version}'\nsteps: [{step}]\n"


PROFILE = '[[providers]]\nid = "mine"\nkind = "openai"\nbase_uri = "http://127.0.0.1:9"\ndefault_model = "%s"\n'


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


async def test_changes_are_noticed_without_being_asked(tmp_path: Path) -> None:
    async with open_setting(tmp_path) as setting, watched(setting):
        write(setting.pipelines / "p.yaml", definition("1"))
        await until(lambda: setting.version_of("p.v1") == "1")
        write(setting.config_file, PROFILE % "m")
        await until(lambda: setting.local.registry.get("mine") is not None)


@asynccontextmanager
async def watched(setting: Setting) -> AsyncGenerator[None, None]:
    """What changes in the block is noticed."""
    async with trio.open_nursery() as nursery:
        with open_file_watch() as watch:
            await nursery.start(reload_on_changes, setting.reloader, watch)
            yield
            nursery.cancel_scope.cancel()


def model_of(setting: Setting) -> str | None:
    profile = setting.local.registry.get("mine")
    return profile.default_model if profile is not None else None


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


@pytest.mark.parametrize("place", ["file", "directory", "home"])
async def test_a_configuration_file_that_was_away_is_watched_as_before(tmp_path: Path, place: str) -> None:
    async with open_setting(tmp_path, as_user_file=True) as setting:
        file = setting.config_file
        moved = {"file": file, "directory": file.parent, "home": file.parent.parent}[place]
        write(file, PROFILE % "one")
        await setting.reloader.reload()
        async with watched(setting):
            moved.rename(tmp_path / "away")
            await setting.reloader.reload()
            (tmp_path / "away").rename(moved)
            await setting.reloader.reload()
            write(file, PROFILE % "two")
            await until(lambda: model_of(setting) == "two")


async def test_a_configuration_file_that_comes_later_is_noticed(tmp_path: Path) -> None:
    async with open_setting(tmp_path, as_user_file=True) as setting:
        setting.config_file.unlink()
        setting.config_file.parent.rmdir()
        setting.reloader = Reloader(
            config=setting.reloader._load(),
            local=setting.local,
            load=setting.reloader._load,
            use_log_level=setting.log_levels.append,
            use_config=setting.configs.append,
        )
        async with watched(setting):
            setting.config_file.parent.mkdir()
            write(setting.config_file, PROFILE % "one")
            await until(lambda: model_of(setting) == "one")


async def test_a_directory_of_definitions_that_comes_later_is_noticed(tmp_path: Path) -> None:
    async with open_setting(tmp_path) as setting:
        setting.pipelines.rmdir()
        await setting.reloader.reload()
        async with watched(setting):
            setting.pipelines.mkdir()
            write(setting.pipelines / "p.yaml", definition("1"))
            await until(lambda: setting.version_of("p.v1") == "1")
            write(setting.pipelines / "p.yaml", definition("2"))
            await until(lambda: setting.version_of("p.v1") == "2")


async def test_a_reload_that_was_asked_for_renews_the_watch(tmp_path: Path) -> None:
    later = tmp_path / "later"
    async with open_setting(tmp_path, as_user_file=True) as setting:
        setting.reloader._load = partial(load_config, environ={**NOWHERE, "PIPELINE_ENGINE_PIPELINES_DIR": str(later)})
        later.mkdir()
        async with watched(setting):
            await setting.reloader.reload()
            write(later / "p.yaml", definition("1"))
            await until(lambda: setting.version_of("p.v1") == "1")


async def test_changes_behind_links_are_noticed(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    async with open_setting(tmp_path) as setting:
        write(repository / "config.toml", "")
        write(repository / "p.yaml", definition("1"))
        setting.config_file.unlink()
        setting.config_file.symlink_to("repository/config.toml")
        (setting.pipelines / "p.yaml").symlink_to("../repository/p.yaml")
        await setting.reloader.reload()
        async with watched(setting):
            write(repository / "config.toml", PROFILE % "one")
            await until(lambda: model_of(setting) == "one")
            write(repository / "p.yaml", definition("2"))
            await until(lambda: setting.version_of("p.v1") == "2")


async def test_a_mounted_volume_whose_link_is_switched_is_noticed(tmp_path: Path) -> None:
    async with open_setting(tmp_path) as setting:
        for version in ("1", "2"):
            (setting.pipelines / f"..{version}").mkdir()
            write(setting.pipelines / f"..{version}" / "p.yaml", definition(version))
        (setting.pipelines / "..data").symlink_to("..1")
        (setting.pipelines / "p.yaml").symlink_to("..data/p.yaml")
        await setting.reloader.reload()
        async with watched(setting):
            (setting.pipelines / "..new").symlink_to("..2")
            (setting.pipelines / "..new").rename(setting.pipelines / "..data")
            await until(lambda: setting.version_of("p.v1") == "2")


async def until(check: Callable[[], bool]) -> None:
    for _ in range(500):
        if check():
            return
        await trio.sleep(0.02)
    raise AssertionError("it did not happen within 10 s")


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
