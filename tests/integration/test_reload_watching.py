"""Changes of the configuration and of definitions that are noticed by themselves, wherever the files lie."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from tests.api_setting import NOWHERE
from tests.reload_setting import PROFILE, definition, model_of, open_setting, until, watched, write

from pipeline_engine.config_loader import load_config
from pipeline_engine.reload import Reloader


async def test_changes_are_noticed_without_being_asked(tmp_path: Path) -> None:
    async with open_setting(tmp_path) as setting, watched(setting):
        write(setting.pipelines / "p.yaml", definition("1"))
        await until(lambda: setting.version_of("p.v1") == "1")
        write(setting.config_file, PROFILE % "m")
        await until(lambda: setting.local.registry.get("mine") is not None)


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
