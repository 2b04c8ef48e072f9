from __future__ import annotations

from pathlib import Path

import click
import pytest

from pipeline_engine.cli.sources import parse_sources


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, which is the home directory too. Each file in it holds its name."""
    for name in (
        "b.log",
        "a.log",
        "x[1].log",
        "x1.log",
        "log:odd.txt",
        "sub/c.log",
        "sub/deep/b.log",
        ".hidden.log",
        "[d]/e.log",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def sources(*texts: str) -> list[tuple[str, str, str]]:
    return [(source.kind, source.label, source.content) for source in parse_sources(texts)]


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("a.log", ("raw", "a.log", "a.log")),
        ("app=a.log", ("raw", "app", "a.log")),
        ("log:app=a.log", ("log", "app", "a.log")),
        ("log:=a.log", ("log", "a.log", "a.log")),
        ("log:a.log", ("log", "a.log", "a.log")),
        ("sub/c.log", ("raw", "c.log", "sub/c.log")),
        ("log:odd.txt", ("raw", "log:odd.txt", "log:odd.txt")),
        ("log:app=~/a.log", ("log", "app", "a.log")),
        ("log:~/a.log", ("log", "a.log", "a.log")),
    ],
)
def test_a_source_is_a_file_with_or_without_kind_and_label(text: str, source: tuple[str, str, str]) -> None:
    assert sources(text) == [source]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[ab].log", [("raw", "a.log", "a.log"), ("raw", "b.log", "b.log")]),
        ("log:?.log", [("log", "a.log", "a.log"), ("log", "b.log", "b.log")]),
        ("log:app=./?.log", [("log", "app/a.log", "a.log"), ("log", "app/b.log", "b.log")]),
        ("app=?.log", [("raw", "app/a.log", "a.log"), ("raw", "app/b.log", "b.log")]),
        ("sub/*", [("raw", "c.log", "sub/c.log")]),  # no folders
        ("sub/**/*.log", [("raw", "c.log", "sub/c.log"), ("raw", "deep/b.log", "sub/deep/b.log")]),
        ("~/sub/*", [("raw", "c.log", "sub/c.log")]),
        ("x[1].log", [("raw", "x[1].log", "x[1].log")]),  # a name that is there is no pattern
        ("log:x[1].log", [("log", "x[1].log", "x[1].log")]),
        ("[d]/*.log", [("raw", "e.log", "[d]/e.log")]),  # nor is a folder that is there
        ("./[d]/**/*", [("raw", "e.log", "[d]/e.log")]),
        ("log:*.txt", [("raw", "log:odd.txt", "log:odd.txt")]),
    ],
)
def test_each_file_that_a_pattern_fits_is_a_source(text: str, found: list[tuple[str, str, str]]) -> None:
    assert sources(text) == found


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["*.none"], "no file fits *.none"),
        (["log:*.none"], "no file fits *.none"),
        (["log:app=*.none"], "no file fits *.none"),
        (["sub"], "sub is a folder; for its files write 'sub/*'"),
        (["log:app=~/sub"], "is a folder"),
        (["absent"], "cannot read absent: No such file or directory"),
        (["a:b=absent"], "cannot read absent: No such file or directory"),
        (
            ["log:absent"],
            "neither a file log:absent nor, as a source of the kind 'log', a file absent; in full a source",
        ),
        (["./log:absent"], "cannot read ./log:absent: No such"),
        (["log:"], "'log:' names no file"),
        (["log:a="], "'log:a=' names no file"),
        (["-", "log:-"], "standard input (-) can be only one source"),
    ],
)
def test_what_cannot_be_read_is_told_with_what_can_be_done(texts: list[str], words: str) -> None:
    with pytest.raises(click.BadParameter) as refused:
        parse_sources(texts)
    assert words in refused.value.message
