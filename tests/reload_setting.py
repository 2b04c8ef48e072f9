"""A reloader with a real engine, whose configuration and definitions are real files."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio
from tests.api_setting import NOWHERE

from pipeline_engine.assembly import LocalEngine, open_engine
from pipeline_engine.config import Config, LogLevel
from pipeline_engine.config_loader import load_config
from pipeline_engine.errors import UnknownPipelineError
from pipeline_engine.file_watch import open_file_watch
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


async def until(check: Callable[[], bool]) -> None:
    for _ in range(500):
        if check():
            return
        await trio.sleep(0.02)
    raise AssertionError("it did not happen within 10 s")
