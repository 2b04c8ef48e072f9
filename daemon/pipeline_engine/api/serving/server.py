"""Accepts connections and ends them again."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import trio

from pipeline_engine.api.serving.asgi import AsgiApp
from pipeline_engine.api.serving.connection import Connection
from pipeline_engine.api.serving.lifespan import run_lifespan
from pipeline_engine.api.serving.protocol import Service
from pipeline_engine.api.serving.refusals import Refusal
from pipeline_engine.api.serving.settings import ServeSettings

# What accept(2) says when the process or the system has no room for another connection
NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
NO_ROOM_PAUSE_S = 0.2  # the listener stays readable: without a pause it would be asked again at once, for ever

BUSY = Refusal(503, "unavailable", "there are too many connections", extra_headers=((b"retry-after", b"1"),))

logger = logging.getLogger(__name__)


async def serve(
    app: AsgiApp,
    listeners: Sequence[trio.SocketListener],
    *,
    settings: ServeSettings,
    stop: trio.Event,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves the app until `stop` is set, and then until the last response has ended or `grace_s` is over.

    When it stops the listeners are closed, then idle connections; what is under way after `grace_s` is cut off. To
    cancel it is to stop without the grace. Nothing that a client does ends it.
    """
    service = Service(app, settings)
    open_connections: set[Connection] = set()
    async with run_lifespan(app), trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            for listener in listeners:
                accepting.start_soon(partial(_accept, listener, service, open_connections, nursery=connections))
            task_status.started()
            await stop.wait()
            accepting.cancel_scope.cancel()
        for listener in listeners:
            listener.socket.close()
        await service.stop()
        connections.cancel_scope.deadline = trio.current_time() + settings.grace_s
        for connection in open_connections:
            connection.stop()


async def _accept(
    listener: trio.SocketListener, service: Service, open_connections: set[Connection], *, nursery: trio.Nursery
) -> None:
    has_room = True
    while True:
        try:
            stream = await listener.accept()
        except OSError as exc:
            if exc.errno not in NO_ROOM:
                raise
            if has_room:
                logger.warning("no connection can be accepted: %s", os.strerror(exc.errno))
            has_room = False
            await trio.sleep(NO_ROOM_PAUSE_S)
            continue
        has_room = True
        if len(open_connections) >= service.settings.max_connections:
            _turn_away(stream)
            continue
        connection = Connection(stream, service=service)
        open_connections.add(connection)
        nursery.start_soon(_run, connection, open_connections)


async def _run(connection: Connection, open_connections: set[Connection]) -> None:
    try:
        await connection.run()
    except* Exception as group:
        # The last barrier: a fault in one connection, ours or of a library, must not touch the others.
        logger.exception("a connection failed", exc_info=group)
    finally:
        open_connections.discard(connection)


def _turn_away(stream: trio.SocketStream) -> None:
    """Says why, if the client has room for it, and closes; never waits."""
    head = b"".join(b"%s: %s\r\n" % header for header in BUSY.headers())
    answer = b"HTTP/1.1 %d Service Unavailable\r\n%s\r\n%s" % (BUSY.status, head, BUSY.body())
    with suppress(OSError):
        os.write(stream.socket.fileno(), answer)
        os.read(stream.socket.fileno(), 65_536)  # unread input would turn the close into a reset
    stream.socket.close()
