"""The parent of a model server, which ends it when the daemon is gone, however the daemon went.

Run as a program with the server's command as its arguments. Its standard input is a pipe whose other end only the
daemon holds: an end of file there means that the daemon is no more, even after a SIGKILL. (A parent-death signal would
not do: it is bound to the thread that started the child, and says nothing to the children of the server.)
"""

from __future__ import annotations

import os
import select
import signal
import sys

CANNOT_START = 127  # the exit code of a shell whose command was not found
_DEFAULT_SIGNALS = (signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ)  # which this program or Python ignores


def main(command: list[str]) -> int:
    """The exit code of the server: its own, or 128 and the number of the signal that killed it."""
    # The group gets SIGTERM, and this process with it; it has to stay until the server has ended.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        server = os.posix_spawnp(
            command[0],
            command,
            os.environ,
            # What it writes goes one way, to the standard error.
            file_actions=[(os.POSIX_SPAWN_DUP2, nothing, 0), (os.POSIX_SPAWN_DUP2, 2, 1)],
            setsigdef=_DEFAULT_SIGNALS,
        )
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        sys.stderr.write(f"{command[0]}: {reason}\n")
        return CANNOT_START
    server_ended = os.pidfd_open(server)
    events = select.poll()
    events.register(0, select.POLLIN)
    events.register(server_ended, select.POLLIN)
    if any(fd == 0 for fd, _ in events.poll()):
        os.killpg(0, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(server, 0)[1])
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
