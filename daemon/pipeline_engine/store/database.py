"""Opens database files: for their owner alone, of the present schema, with errors of ours."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import apsw

from pipeline_engine.errors import StoreError, StoreFullError

SCHEMA_VERSION = 2
OLDEST_READABLE = 1  # what has changed since then is one index, which nothing needs that only reads jobs
BUSY_TIMEOUT = 5000  # milliseconds: another process (a backup, a shell) may hold the write lock for a while

#: What makes the next version of each earlier one.
_MIGRATIONS = {
    1: "CREATE INDEX idempotency_by_use ON idempotency (used_at)",
}

_UNUSABLE = (
    apsw.IOError,
    apsw.ReadOnlyError,
    apsw.CantOpenError,
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.ProtocolError,
    apsw.PermissionsError,
)


def make_private(path: Path) -> None:
    """The database is for its owner alone; SQLite gives its WAL the same mode."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as exc:
        raise StoreError(f"cannot open the database {path}: {exc.strerror}") from exc


def connect(path: Path, *, flags: int = apsw.SQLITE_OPEN_READWRITE) -> apsw.Connection:
    connection = apsw.Connection(str(path), flags=flags)
    connection.set_busy_timeout(BUSY_TIMEOUT)
    return connection


def migrate(connection: apsw.Connection) -> None:
    """Make the schema the present one; an empty file gets it whole. Raises StoreError for that of a newer version."""
    version = connection.pragma("user_version")
    if version > SCHEMA_VERSION:
        words = f"it is of schema {version}, this version of Pipeline Engine knows up to {SCHEMA_VERSION}"
        raise StoreError(f"the database was made by a newer version: {words}")
    if version == 0:
        schema = resources.files("pipeline_engine.store").joinpath("schema.sql").read_text(encoding="utf-8")
        with connection:
            connection.execute(schema)
            connection.pragma("user_version", SCHEMA_VERSION)
        return
    for earlier in range(version, SCHEMA_VERSION):
        with connection:
            connection.execute(_MIGRATIONS[earlier])
            connection.pragma("user_version", earlier + 1)


def keep_wal(connection: apsw.Connection) -> None:
    """Leave the WAL's files, empty, when the database is closed: on a full disk they could not be made again."""
    enabled = ctypes.c_int(1)
    connection.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(enabled))


@contextmanager
def mapped_errors() -> Iterator[None]:
    """What SQLite raises in the block comes out as StoreError or StoreFullError."""
    try:
        yield
    except apsw.FullError as exc:
        raise StoreFullError(f"the store is full: {exc}") from exc
    except apsw.ConstraintError:
        raise  # a fault of ours, which no later attempt would mend
    except (apsw.BusyError, apsw.LockedError) as exc:
        raise StoreError(f"the database is locked by another process: {exc}") from exc
    except _UNUSABLE as exc:
        raise StoreError(f"the database cannot be used: {exc}") from exc
