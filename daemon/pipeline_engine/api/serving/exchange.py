"""One request and its response, between the connection that carries them and the ASGI app."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import trio

from pipeline_engine.api.serving.asgi import AsgiApp, Scope

MAX_BUFFERED_BODY = 256 * 1024  # bytes of a body that wait for the app; then the connection is not read on

SENDS_IN_A_TURN = 8  # of a stream that never waits; most do between two pieces, and need no further turn of the loop

#: An ASGI extension of ours: `scope["extensions"][...]` is `Exchange.disconnect_scope`.
DISCONNECT_SCOPE = "pipeline_engine.disconnect_scope"

logger = logging.getLogger(__name__)


class ClientGoneError(OSError):
    """The client has left or was cut off: raised by `send`, as the ASGI specification asks."""


class Exchange:
    """Runs the app for one request.

    A queue of messages (as Hypercorn has it) would do if the end of an exchange did not come from two sides: when the
    client leaves, and when the app's own last `send` closes the connection. That `send` must not wait for the app to
    take a message, and the app must not hear "disconnect" while it is still inside: Quart-Trio would cancel it there.

    Where there is nothing to wait for there is no checkpoint either: each is a turn of the event loop, and whoever
    calls again and again (the connection that reads, an app that streams) has one of its own.
    """

    def __init__(
        self,
        app: AsgiApp,
        scope: Scope,
        *,
        send: Callable[[Mapping[str, Any] | None], Awaitable[None]],
        ask_for_body: Callable[[], Awaitable[None]],
    ) -> None:
        self._app = app
        self._scope = scope
        self._send = send
        self._ask_for_body = ask_for_body
        self._pieces: list[bytes] = []
        self._size = 0
        self._body_complete = False
        self._body_delivered = False
        self._ended = False
        self._in_last_send = False
        self._told_gone = False
        self._broken = False
        self._sent = 0
        self._changed: trio.Event | None = None  # there is one while somebody waits
        self._disconnect_scope: trio.CancelScope | None = None

    async def run(self) -> None:
        try:
            await self._run()
        finally:
            # Whatever became of it: nobody takes what still comes, and the connection must not wait for that.
            self._ended = True
            self._notify()

    async def _run(self) -> None:
        try:
            await self._app(self._scope, self.receive, self.send)
        except* Exception as group:
            # An app that was told breaks off: with our error, or with what its framework makes of it.
            level = logging.DEBUG if self._told_gone else logging.ERROR
            logger.log(level, "%s %s failed", self._scope["method"], self._scope["path"], exc_info=group)
        if not self._broken:
            with suppress(ClientGoneError):
                await self._send(None)  # the app is done: what it left unfinished is broken off

    async def put(self, message: Mapping[str, Any]) -> None:
        """Takes what the connection read; waits while the app is behind with the body."""
        if message["type"] == "http.disconnect":
            self._ended = True
            self._notify()
            if self._disconnect_scope is not None and not self._in_last_send:
                self._told_gone = True
                self._disconnect_scope.cancel()
            return
        if message["body"] and self._disconnect_scope is None:
            self._pieces.append(message["body"])
            self._size += len(message["body"])
        self._body_complete = not message["more_body"]
        self._notify()
        while self._size >= MAX_BUFFERED_BODY and not self._ended:
            await self._next_change().wait()

    async def receive(self) -> dict[str, Any]:
        """ASGI's `receive`; the pieces that wait come as one."""
        while True:
            if self._pieces or (self._body_complete and not self._body_delivered):
                body = b"".join(self._pieces)
                self._pieces.clear()
                self._size = 0
                self._body_delivered = self._body_complete
                self._notify()
                return {"type": "http.request", "body": body, "more_body": not self._body_complete}
            if self._ended and not self._in_last_send:
                self._told_gone = True
                return {"type": "http.disconnect"}
            changed = self._next_change()  # before the next await, lest its notice be lost
            if not self._body_complete and not self._ended:
                await self._ask_for_body()
            await changed.wait()

    async def send(self, message: Mapping[str, Any]) -> None:
        """ASGI's `send`: returns when the kernel has the bytes; raises ClientGoneError when nobody takes them."""
        if self._ended:
            self._told_gone = True
            raise ClientGoneError("the client has closed the connection")
        is_body = message["type"] == "http.response.body"
        goes_on = message.get("more_body", False)
        self._in_last_send = is_body and not goes_on
        try:
            await self._send(message)
        except ClientGoneError:
            self._told_gone = self._broken = True
            raise
        except trio.Cancelled:
            self._broken = True  # perhaps in the middle of a message: the connection closes by itself
            raise
        finally:
            self._in_last_send = False
            self._notify()
        self._sent += 1
        if goes_on and self._sent % SENDS_IN_A_TURN == 0:
            await trio.lowlevel.checkpoint()  # neither the write nor the app need have waited for anything

    def disconnect_scope(self) -> trio.CancelScope:
        """A scope for what the app does: it is cancelled when the client leaves.

        It takes the place of `receive`: what comes of the body from now on is thrown away, so that it cannot fill up and
        hide the client's leaving.
        """
        self._disconnect_scope = scope = trio.CancelScope()
        self._pieces.clear()
        self._size = 0
        self._notify()
        if self._ended:
            self._told_gone = True
            scope.cancel()
        return scope

    def _next_change(self) -> trio.Event:
        if self._changed is None:
            self._changed = trio.Event()
        return self._changed

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None
