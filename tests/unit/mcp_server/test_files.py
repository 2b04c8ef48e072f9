from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline_engine.errors import InvalidRequestError
from pipeline_engine.mcp_server import files
from pipeline_engine.mcp_server.files import FileAccess


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    directory = tmp_path / "allowed"
    directory.mkdir()
    (directory / "a.txt").write_bytes(b"text")
    (tmp_path / "secret.txt").write_bytes(b"secret")
    return directory


async def test_a_file_below_a_directory_is_read_by_either_name(allowed: Path) -> None:
    access = FileAccess([allowed.parent / "other", allowed])
    assert await access.read("a.txt", path="p") == b"text"
    assert await access.read(str(allowed / "a.txt"), path="p") == b"text"


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/passwd", "link", "up/secret.txt"])
async def test_what_leads_out_of_the_directory_is_refused(allowed: Path, name: str) -> None:
    (allowed / "link").symlink_to(allowed.parent / "secret.txt")
    (allowed / "up").symlink_to(allowed.parent)
    with pytest.raises(InvalidRequestError, match="outside of what may be read"):
        await FileAccess([allowed]).read(name, path="sources[0].path")


async def test_without_a_directory_nothing_is_read(allowed: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"sources\[0\]\.path: .*--allow-files"):
        await FileAccess().read(str(allowed / "a.txt"), path="sources[0].path")


async def test_what_is_no_file_is_refused_at_once(allowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(allowed / "pipe")
    monkeypatch.setattr(files, "LARGEST", 3)
    for name, words in {
        "pipe": "not a regular file",
        ".": r"cannot read \.: Is a directory",
        "none": "cannot read none",
        "a\0b": "not the name of a file",
        "a.txt": "larger than",
    }.items():
        with pytest.raises(InvalidRequestError, match=words):
            await FileAccess([allowed]).read(name, path="p")
