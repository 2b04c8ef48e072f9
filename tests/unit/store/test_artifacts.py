"""Files of artifacts: what is kept, how long, and what goes."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline_engine.errors import StoreError, StoreFullError
from pipeline_engine.models import JobId
from pipeline_engine.store.artifacts import ArtifactFiles

ONE, TWO = JobId("job_1"), JobId("job_2")
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
BROKEN = OSError(errno.EIO, "Input/output error")


@pytest.fixture
def files(tmp_path: Path) -> ArtifactFiles:
    return ArtifactFiles(tmp_path / "artifacts")


def names_in(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.rglob("*") if path.is_file()}


def failing(monkeypatch: pytest.MonkeyPatch, name: str, error: OSError) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    owner, attribute = (Path, "replace") if name == "rename" else (os, name)
    monkeypatch.setattr(owner, attribute, fail)


def test_the_name_is_the_digest_and_only_the_owner_may_read(files: ArtifactFiles, tmp_path: Path) -> None:
    sha256 = files.save(b"abc", job_id=ONE)
    assert sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.save(b"abc", job_id=TWO) == sha256
    assert files.path(sha256).read_bytes() == b"abc"
    assert files.path(sha256).stat().st_mode & 0o777 == 0o600
    assert files.used_bytes == 3
    assert names_in(tmp_path) == {sha256}


@pytest.mark.parametrize(
    ("operation", "error", "kind"),
    [
        ("open", NO_SPACE, StoreFullError),
        ("fsync", NO_SPACE, StoreFullError),
        ("fsync", OSError(errno.EDQUOT, "Disk quota exceeded"), StoreFullError),
        ("fsync", BROKEN, StoreError),
        ("rename", BROKEN, StoreError),
    ],
)
def test_a_disk_that_fails_leaves_no_half_file_and_the_next_try_succeeds(
    files: ArtifactFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    error: OSError,
    kind: type[StoreError],
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, operation, error)
        with pytest.raises(StoreError, match="cannot be kept: ") as caught:
            files.save(b"abc", job_id=ONE)
    assert type(caught.value) is kind
    assert str(error.strerror) in caught.value.message
    assert names_in(tmp_path) == set()
    sha256 = files.save(b"abc", job_id=ONE)
    assert files.path(sha256).read_bytes() == b"abc"


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Whether each sync succeeds; all do when there are no more."""
    outcomes: list[bool] = []
    sync = os.fsync

    def sync_if_it_may(descriptor: int) -> None:
        if outcomes and not outcomes.pop(0):
            raise BROKEN
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync_if_it_may)
    yield outcomes
    assert outcomes == []


def test_a_name_that_may_not_be_on_the_disk_is_synced_before_it_is_believed(
    files: ArtifactFiles, syncs: list[bool]
) -> None:
    files.save(b"first", job_id=ONE)
    syncs += [True, True, False]  # the file, its directory's directory, and then its name
    with pytest.raises(StoreError):
        files.save(b"abc", job_id=ONE)
    syncs += [False]
    with pytest.raises(StoreError):
        files.save(b"abc", job_id=ONE)
    syncs += [True]
    sha256 = files.save(b"abc", job_id=ONE)
    assert files.path(sha256).read_bytes() == b"abc"
    assert files.used_bytes == 8


def test_what_a_job_holds_stays_until_it_lets_go(files: ArtifactFiles) -> None:
    sha256 = files.save(b"abc", job_id=ONE)
    files.hold(TWO, [sha256])
    files.release(ONE)
    assert files.doubtful == {sha256}
    assert files.remove_doubtful(lambda _: ()) == 0
    assert files.path(sha256).exists()
    files.release(TWO)
    assert files.remove_doubtful(lambda _: [sha256]) == 0
    assert files.doubtful == set()
    files.doubt([sha256])
    assert files.remove_doubtful(lambda _: ()) == 1
    assert not files.path(sha256).exists()
    assert files.used_bytes == 0


def test_what_is_let_go_while_the_store_is_asked_stays_until_it_is_asked_again(files: ArtifactFiles) -> None:
    sha256 = files.save(b"abc", job_id=ONE)
    files.release(ONE)

    def ask(_: object) -> tuple[()]:
        files.save(b"abc", job_id=TWO)
        files.release(TWO)  # its end is stored: it is the one that uses the file now
        return ()

    assert files.remove_doubtful(ask) == 0
    assert files.doubtful == {sha256}
    assert files.remove_unused(()) == 0
    assert files.path(sha256).exists()
    assert files.remove_doubtful(lambda _: ()) == 1


def test_what_is_in_doubt_stays_so_when_the_store_does_not_answer(files: ArtifactFiles) -> None:
    sha256 = files.save(b"abc", job_id=ONE)
    files.release(ONE)

    def ask(_: object) -> tuple[()]:
        raise StoreError("disk I/O error")

    with pytest.raises(StoreError):
        files.remove_doubtful(ask)
    assert files.doubtful == {sha256}


def test_a_sweep_keeps_what_is_used_held_or_being_written(files: ArtifactFiles, tmp_path: Path) -> None:
    used, held, lost = (files.save(data, job_id=ONE) for data in (b"used", b"held", b"lost"))
    files.release(ONE)
    files.remove_doubtful(lambda doubtful: doubtful)
    files.hold(TWO, [held])
    (tmp_path / "artifacts" / ".left").write_bytes(b"half")
    with files.draft() as draft:
        draft.write(b"more")
        assert files.remove_unused([used]) == 2
        draft.keep()
    assert names_in(tmp_path) == {used, held, draft.sha256}
    assert not files.path(lost).exists()
    assert files.used_bytes == len(b"used" + b"held" + b"more")


def test_two_who_save_the_same_bytes_at_once_are_counted_once(
    files: ArtifactFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_looked = threading.Barrier(2)
    replace = Path.replace

    def replace_when_both_have_looked(self: Path, target: Path) -> Path:
        with suppress(threading.BrokenBarrierError):  # if only one of them can come here at a time
            both_looked.wait(0.1)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_when_both_have_looked)
    with ThreadPoolExecutor(2) as pool:
        assert len({*pool.map(lambda job_id: files.save(b"abc", job_id=job_id), [ONE, TWO])}) == 1
    assert files.used_bytes == 3


def test_a_file_that_cannot_be_removed_is_told_of_and_counted(
    files: ArtifactFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sha256 = files.save(b"abc", job_id=ONE)
    files.release(ONE)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        assert files.remove_doubtful(lambda _: ()) == 0
    assert "an artifact that no job has cannot be removed" in caplog.text
    assert files.path(sha256).exists()
    assert files.used_bytes == 3


def test_a_failure_is_told_as_long_as_somebody_waits(files: ArtifactFiles) -> None:
    assert files.failure is None
    with files.waiting(StoreFullError("full")):
        assert isinstance(files.failure, StoreFullError)
        assert files.failure.message == "full"
    assert files.failure is None
