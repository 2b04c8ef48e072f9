"""Gives the space of deleted jobs back to the file system, a little at a time."""

from __future__ import annotations

import apsw

KEPT_PAGES = 4096  # that may stay free in the file: what is written next goes there
KEPT_PART = 4  # and so may a fourth of what is in use
STEP_PAGES = 2000  # at a time: it takes a fraction of a second, in which nothing can be committed

_INCREMENTAL = 2  # as `PRAGMA auto_vacuum` says it


def make_shrinkable(connection: apsw.Connection) -> None:
    """Let the database shrink; only one that is empty yet learns it."""
    connection.pragma("auto_vacuum", _INCREMENTAL)


class FreePages:
    """The pages of the database that hold nothing. One from before it could shrink keeps them all."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._can_shrink = connection.pragma("auto_vacuum") == _INCREMENTAL

    def give_back(self) -> tuple[bool, bool]:
        """Give back some of those beyond what is kept: whether there were any, and whether there are more.

        Raises apsw.Error.
        """
        if not self._can_shrink or (excess := self._excess()) <= 0:
            return False, False
        self._connection.execute(f"PRAGMA incremental_vacuum({min(excess, STEP_PAGES)})").fetchall()
        return True, excess > STEP_PAGES

    def _excess(self) -> int:
        free = int(self._connection.pragma("freelist_count"))
        in_use = int(self._connection.pragma("page_count")) - free
        return free - max(KEPT_PAGES, in_use // KEPT_PART)
