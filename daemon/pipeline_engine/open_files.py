"""How many files the process may have open, and how many of them are for connections."""

from __future__ import annotations

import resource

RESERVE = 256  # for everything but connections: the store, providers, tools with their pipes, artifacts


def allow_all() -> int:
    """Allow as many open files as the system lets the process have; how many these are.

    The limit that a shell or a service manager sets is meant for programs that use select(2), which cannot go beyond
    1024. Tools have a limit of their own.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # some systems have a hard limit that cannot be used
        return soft
    return hard


def room_for_connections(files: int) -> int:
    """How many connections may be open where so many files may: the jobs of others must not run out of them."""
    return max(files - RESERVE, files // 2)
