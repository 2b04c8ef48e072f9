"""All calls of the API."""

from __future__ import annotations

from functools import cache
from typing import Any

from pipeline_engine import __version__
from pipeline_engine.api import artifacts, config_routes, jobs, metrics, streams
from pipeline_engine.api.calls import JSON, Answer, Call, Route, json_answer
from pipeline_engine.api.context import Api
from pipeline_engine.api.openapi import describe
from pipeline_engine.api.wire import Index
from pipeline_engine.decoding import to_json


async def get_index(api: Api, call: Call) -> Answer:
    links = {"health": "/health", "openapi": "/openapi.json", "ui": "/ui/"}
    return json_answer(Index(name="Pipeline Engine", version=__version__, links=links))


async def get_openapi(api: Api, call: Call) -> Answer:
    return Answer(content_type=JSON, body=_document())


@cache
def _document() -> bytes:
    return to_json(describe(ROUTES))


ROUTES = (
    *metrics.ROUTES,
    *jobs.ROUTES,
    *streams.ROUTES,
    *artifacts.ROUTES,
    *config_routes.ROUTES,
    Route(
        method="GET",
        path="/",
        handler=get_index,
        tag="daemon",
        summary="What answers here, and where to go on.",
        answers={200: Index},
        needs_engine=False,
    ),
    Route(
        method="GET",
        path="/openapi.json",
        handler=get_openapi,
        tag="daemon",
        summary="This document.",
        answers={200: dict[str, Any]},
        needs_engine=False,
    ),
)
