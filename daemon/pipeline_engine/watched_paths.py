"""Which directories to watch, and for which names in them, so that no change of a file or a directory is missed."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline_engine.documents import SUFFIXES

MAX_LINKS = 40  # on the way to one file; Linux follows no more


@dataclass(frozen=True, slots=True)
class WatchedNames:
    """The names in one directory that matter: these, and those of all definition files if `definitions`."""

    exact: frozenset[str]
    definitions: bool

    def __call__(self, name: str) -> bool:
        return name in self.exact or (self.definitions and _is_definition(name))


def find_watched(files: Iterable[Path], folders: Iterable[Path]) -> dict[Path, WatchedNames]:
    """The directories to watch, and for which names, for these files and for the definition files in these folders.

    What is missing is waited for where it would appear, and links are followed. Reads directories, so it may block.
    """
    names: defaultdict[Path, set[str]] = defaultdict(set)
    real_folders: set[Path] = set()

    def add(entries: Iterable[tuple[Path, str]]) -> None:
        for directory, name in entries:
            names[directory].add(name)

    for file in files:
        add(entries_behind(file))
    for folder in folders:
        entries = list(entries_behind(folder))
        try:
            links = _linked_definitions(folder)
        except OSError:
            add(entries)
            continue
        real = Path(os.path.realpath(folder))
        real_folders.add(real)
        add(entry for entry in entries if entry != (real.parent, real.name))  # a watched directory tells of its own end
        for link in links:
            add(entries_behind(link))
    return {
        directory: WatchedNames(frozenset(names.get(directory, ())), directory in real_folders)
        for directory in names.keys() | real_folders
    }


def entries_behind(path: Path) -> Iterator[tuple[Path, str]]:
    """The entries, each with its directory, that decide what a path leads to: each link on the way, and at last the
    entry itself, or the first one that is missing. The directories are there, and have no links in their paths.
    """
    absolute = path.absolute()
    directory, parts = Path(absolute.anchor), [*reversed(absolute.parts[1:])]
    links = 0
    while parts and links <= MAX_LINKS:
        name = parts.pop()
        if name == "..":
            directory = directory.parent
            continue
        entry = directory / name
        try:
            target = entry.readlink()
        except OSError:  # it is no link, or it is not there
            if not parts or not os.path.isdir(entry):  # noqa: PTH112 - which says no where Path.is_dir raises
                yield directory, name
                return
            directory = entry
            continue
        yield directory, name
        links += 1
        directory = Path(target.anchor) if target.is_absolute() else directory
        parts += reversed(target.parts[1:] if target.is_absolute() else target.parts)


def _linked_definitions(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [folder / entry.name for entry in entries if _is_definition(entry.name) and entry.is_symlink()]


def _is_definition(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES
