"""Serves the files of the web page under /ui/: public ones, which hold nothing of anybody's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from pipeline_engine.api.calls import Answer, Call, Handler, Route
from pipeline_engine.api.context import Api
from pipeline_engine.api.etags import client_has
from pipeline_engine.errors import NotFoundError

INDEX = "index.html"
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
#: Files of ours alone, no markup made of texts (trusted types), and no calls but to this daemon. `blob:` are the images
#: that the page has fetched with the API key.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


@dataclass(frozen=True, slots=True)
class _File:
    content_type: str
    body: bytes
    etag: str


@cache
def _files() -> dict[str, _File]:
    """The files by their names: nothing else can be asked for, whatever a path looks like."""
    files = {}
    for entry in (resources.files("pipeline_engine") / "web").iterdir():
        suffix = entry.name.rpartition(".")[2]
        if suffix in TYPES:
            body = entry.read_bytes()
            files[entry.name] = _File(TYPES[suffix], body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
    return files


async def show_page(api: Api, call: Call) -> Answer:
    return _answer(INDEX, call)


async def show_file(api: Api, call: Call) -> Answer:
    return _answer(call.path_values["file"], call)


async def lead_to_page(api: Api, call: Call) -> Answer:
    return Answer(status=308, headers={"Location": "ui/"})


def _answer(name: str, call: Call) -> Answer:
    file = _files().get(name)
    if file is None:
        raise NotFoundError("there is nothing at this address")
    # Asked for anew each time, so that after an update no old file meets a new one.
    headers = {"ETag": file.etag, "Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
    if client_has(file.etag, call.headers):
        return Answer(status=304, headers=headers)
    return Answer(content_type=file.content_type, body=file.body, headers=headers)


def _route(path: str, handler: Handler, status: int) -> Route:
    answers = {status: None}
    return Route(method="GET", path=path, handler=handler, tag="", summary="", answers=answers, needs_engine=False)


#: For the router alone: they are no calls of the API, and not in its document.
ROUTES = (
    _route("/ui", lead_to_page, 308),
    _route("/ui/", show_page, 200),
    _route("/ui/{file}", show_file, 200),
)
