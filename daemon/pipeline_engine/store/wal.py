"""Keeps the write-ahead log of a database short: under load, and when nothing is written any more."""

from __future__ import annotations

from pathlib import Path

import apsw

from pipeline_engine.store.database import BUSY_TIMEOUT

CHECKPOINT_PAGES = 1000  # of the WAL: from so many on they go into the database after each commit
RESTART_PAGES = 4000  # with so many the WAL has to begin anew, which takes a moment without readers
RESTART_WAIT = 100  # milliseconds for which a commit waits for that moment; twice as long, and as rarely, each time
LONGEST_WAIT = 800  # milliseconds; our own readers are done in a tenth of that
SIZE_LIMIT = 64 * 1024 * 1024  # bytes: a WAL that a long reader made grow is cut back to this
IDLE_SIZE = 1024 * 1024  # bytes that may stay when nothing is written


class Wal:
    """The WAL behind the one connection that writes."""

    def __init__(self, path: Path, connection: apsw.Connection) -> None:
        self._file = path.with_name(f"{path.name}-wal")
        self._connection = connection
        self._begin_anew()
        connection.pragma("journal_size_limit", SIZE_LIMIT)
        connection.set_wal_hook(self._checkpoint)

    def _begin_anew(self) -> None:
        self._restart_at = RESTART_PAGES
        self._wait = RESTART_WAIT
        self._pause = CHECKPOINT_PAGES  # until the next time, in pages

    def _put_off(self, pages: int) -> None:
        # Another program may read for hours: those who write must not wait for it again and again.
        self._restart_at = pages + self._pause
        self._pause *= 2
        self._wait = min(2 * self._wait, LONGEST_WAIT)

    def _checkpoint(self, connection: apsw.Connection, database: str, pages: int) -> int:
        """SQLite calls this after each commit; `pages` are in the WAL.

        SQLite's own way to do it never waits for readers. Where followers read all the time, the WAL would never begin
        anew, and grow as long as they do. What fails here costs nothing: the WAL has what was committed, and the next
        commit tries again.
        """
        if pages < CHECKPOINT_PAGES:
            self._begin_anew()
            return apsw.SQLITE_OK
        restart = pages >= self._restart_at
        connection.set_busy_timeout(self._wait)
        try:
            connection.wal_checkpoint(
                database, apsw.SQLITE_CHECKPOINT_RESTART if restart else apsw.SQLITE_CHECKPOINT_PASSIVE
            )
        except apsw.Error:
            if restart:
                self._put_off(pages)
        finally:
            connection.set_busy_timeout(BUSY_TIMEOUT)
        return apsw.SQLITE_OK

    def size(self) -> int:
        """Bytes. Raises FileNotFoundError before the first commit."""
        return self._file.stat().st_size

    def empty(self, *, whatever_size: bool = False) -> bool:
        """Move what a large WAL holds into the database, and cut its file. False when somebody reads it just now."""
        try:
            if self.size() <= IDLE_SIZE and not whatever_size:
                return True
            self._connection.set_busy_timeout(RESTART_WAIT)
            try:
                self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            finally:
                self._connection.set_busy_timeout(BUSY_TIMEOUT)
        except (OSError, apsw.Error):
            return False
        return True
