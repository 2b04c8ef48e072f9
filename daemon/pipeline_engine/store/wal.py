"""Keeps the write-ahead log of a database short."""

from __future__ import annotations

import apsw

from pipeline_engine.store.database import BUSY_TIMEOUT

CHECKPOINT_PAGES = 1000  # of the WAL: from so many on they go into the database after each commit
RESTART_PAGES = 4000  # with so many the WAL has to begin anew, which takes a moment without readers
RESTART_WAIT = 100  # milliseconds for which a commit waits for that moment
SIZE_LIMIT = 64 * 1024 * 1024  # bytes: a WAL that a long reader made grow is cut back to this


class Wal:
    """The WAL behind the one connection that writes."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._restart_at = RESTART_PAGES
        connection.pragma("journal_size_limit", SIZE_LIMIT)
        connection.set_wal_hook(self._checkpoint)

    def _checkpoint(self, connection: apsw.Connection, database: str, pages: int) -> int:
        """SQLite calls this after each commit; `pages` are in the WAL.

        SQLite's own way to do it never waits for readers. Where followers read all the time, the WAL would never begin
        anew, and grow as long as they do. What fails here costs nothing: the WAL has what was committed, and the next
        commit tries again.
        """
        if pages >= CHECKPOINT_PAGES:
            restart = pages >= self._restart_at
            connection.set_busy_timeout(RESTART_WAIT)
            try:
                connection.wal_checkpoint(
                    database, apsw.SQLITE_CHECKPOINT_RESTART if restart else apsw.SQLITE_CHECKPOINT_PASSIVE
                )
            except apsw.Error:
                if restart:
                    self._restart_at = pages + CHECKPOINT_PAGES
            else:
                if restart:
                    self._restart_at = RESTART_PAGES
            finally:
                connection.set_busy_timeout(BUSY_TIMEOUT)
        return apsw.SQLITE_OK
