"""Noticing changes of real files."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from pipeline_engine.file_watch import FileWatch, open_file_watch

PATIENCE = 5.0  # seconds; a change is noticed in a fraction of one
SILENCE = 0.4  # seconds in which nothing must be noticed


@pytest.fixture
async def watch(tmp_path: Path) -> AsyncGenerator[FileWatch, None]:
    with open_file_watch() as watch:
        assert watch.watch({tmp_path: lambda name: name.endswith(".yaml")}) == []
        yield watch


@asynccontextmanager
async def noticed(watch: FileWatch) -> AsyncGenerator[None, None]:
    """What happens in the block is noticed."""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.changed)
            await trio.testing.wait_all_tasks_blocked()
            yield


async def is_silent(watch: FileWatch) -> bool:
    with trio.move_on_after(SILENCE) as scope:
        await watch.changed()
    return scope.cancelled_caught


def write(path: Path) -> None:
    path.write_text("x", encoding="utf-8")


async def test_writing_renaming_and_removing_are_noticed(watch: FileWatch, tmp_path: Path) -> None:
    file, other = tmp_path / "a.yaml", tmp_path / "other"
    write(other)
    async with noticed(watch):
        write(file)
    async with noticed(watch):
        with file.open("a", encoding="utf-8") as opened:
            opened.write("more")
    async with noticed(watch):
        other.replace(file)  # as editors write
    async with noticed(watch):
        file.rename(other)
    write(file)
    async with noticed(watch):
        file.unlink()


async def test_what_is_of_no_interest_is_not_noticed(watch: FileWatch, tmp_path: Path) -> None:
    write(tmp_path / "engine.log")
    (tmp_path / "folder").mkdir()
    assert await is_silent(watch)


async def test_a_directory_that_is_replaced_is_noticed_and_can_be_watched_again(
    watch: FileWatch, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    wanted: dict[Path, Callable[[str], bool]] = {folder: lambda _: True}
    assert watch.watch(wanted) == []
    async with noticed(watch):
        folder.rename(tmp_path / "old")
    assert watch.watch(wanted) == [folder]
    folder.mkdir()
    assert watch.watch(wanted) == []
    async with noticed(watch):
        write(folder / "new")
    write(tmp_path / "unwatched.yaml")  # in the directory that is watched no longer
    assert await is_silent(watch)


async def test_two_paths_to_one_directory_are_both_heeded(watch: FileWatch, tmp_path: Path) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    link.symlink_to("folder")
    assert watch.watch({folder: lambda name: name == "one", link: lambda name: name == "other"}) == []
    for name in ("one", "other"):
        async with noticed(watch):
            write(link / name)
    write(folder / "third")
    assert await is_silent(watch)


async def test_many_changes_together_are_one(watch: FileWatch, tmp_path: Path) -> None:
    async with noticed(watch):
        for number in range(20):
            write(tmp_path / f"{number}.yaml")
            await trio.sleep(0.01)
    assert await is_silent(watch)


async def test_a_file_that_changes_without_end_is_noticed(
    watch: FileWatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline_engine.file_watch.MAX_DELAY_S", 0.3)

    async def scribble() -> None:
        while True:
            write(tmp_path / "a.yaml")
            await trio.sleep(0.02)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scribble)
            await watch.changed()
            nursery.cancel_scope.cancel()


def test_a_system_that_has_no_watches_left_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        def inotify_init1(self, flags: int) -> int:
            return -1

    monkeypatch.setattr("ctypes.CDLL", lambda *args, **kwargs: Libc())
    monkeypatch.setattr("ctypes.get_errno", lambda: errno.EMFILE)
    with pytest.raises(OSError, match="Too many open files"), open_file_watch():
        pass


def test_other_systems_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda *args, **kwargs: object())
    with pytest.raises(OSError, match="not implemented"), open_file_watch():
        pass
