"""What is watched so that no change of a path is missed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_engine.watched_paths import MAX_LINKS, entries_behind, find_watched


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path.resolve()


def behind(path: Path, home: Path) -> list[str]:
    return [str((directory / name).relative_to(home)) for directory, name in entries_behind(path)]


def test_of_a_plain_path_its_own_entry_decides(home: Path) -> None:
    (home / "a").mkdir()
    (home / "a" / "file").touch()
    assert behind(home / "a" / "file", home) == ["a/file"]


def test_what_is_missing_decides_where_it_would_appear(home: Path) -> None:
    assert behind(home / "a", home) == ["a"]
    assert behind(home / "a" / "b" / "file", home) == ["a"]
    (home / "a").touch()
    assert behind(home / "a" / "b", home) == ["a"]


def test_each_link_on_the_way_decides(home: Path) -> None:
    (home / "real" / "deep").mkdir(parents=True)
    (home / "real" / "deep" / "file").touch()
    (home / "folder").symlink_to(home / "real")
    (home / "real" / "link").symlink_to("deep/../deep/file")
    assert behind(home / "folder" / "link", home) == ["folder", "real/link", "real/deep/file"]
    (home / "real" / "deep" / "file").unlink()
    assert behind(home / "folder" / "link", home) == ["folder", "real/link", "real/deep/file"]


def test_links_that_lead_round_and_round_end(home: Path) -> None:
    (home / "one").symlink_to("two")
    (home / "two").symlink_to("one")
    assert len(behind(home / "one", home)) == MAX_LINKS + 1


def test_a_directory_is_watched_for_definitions_and_for_what_its_links_lead_to(home: Path) -> None:
    (home / "real").mkdir()
    (home / "elsewhere").mkdir()
    (home / "elsewhere" / "p.txt").touch()
    (home / "folder").symlink_to("real")
    (home / "real" / "p.YAML").symlink_to("../elsewhere/p.txt")
    (home / "real" / "notes.txt").symlink_to("../missing/notes.txt")
    wanted = find_watched([home / "real" / "config"], [home / "folder", home / "later" / "folder"])
    assert wanted.keys() == {home, home / "real", home / "elsewhere"}
    assert [name for name in ("folder", "later", "missing", "p.yaml") if wanted[home](name)] == ["folder", "later"]
    assert [name for name in ("config", "p.yaml", "q.json", "engine.log") if wanted[home / "real"](name)] == [
        "config", "p.yaml", "q.json",
    ]  # fmt: skip
    assert [name for name in ("p.txt", "p.yaml") if wanted[home / "elsewhere"](name)] == ["p.txt"]


def test_nothing_but_the_directory_is_watched_for_plain_files(home: Path) -> None:
    (home / "folder").mkdir()
    (home / "folder" / "p.yaml").touch()
    assert find_watched([], [home / "folder"]).keys() == {home / "folder"}
