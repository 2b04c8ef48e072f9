"""The way from a socket to the ASGI app: what listens, what speaks HTTP, and what may come in."""

from __future__ import annotations

from pipeline_engine.api.serving.guard import Guard, GuardSettings, host_names
from pipeline_engine.api.serving.listeners import ListenError, describe_listener, describe_socket, open_listeners
from pipeline_engine.api.serving.server import serve
from pipeline_engine.api.serving.settings import ServeSettings

__all__ = [
    "Guard",
    "GuardSettings",
    "ListenError",
    "ServeSettings",
    "describe_listener",
    "describe_socket",
    "host_names",
    "open_listeners",
    "serve",
]
