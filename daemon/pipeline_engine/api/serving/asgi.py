"""The shape of an ASGI app, as far as we type it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
#: Each framework types scope, receive and send in its own way.
AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]
