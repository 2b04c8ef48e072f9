"""The files of the web page as the daemon gives them, and what stands in them. Virtual time."""

from __future__ import annotations

import re
from importlib import resources

import pytest
from tests.api_setting import open_api
from trio.testing import MockClock

from pipeline_engine import __version__
from pipeline_engine.api.serving.guard import Guard, GuardSettings
from pipeline_engine.decoding import Secret

FILES = {
    entry.name: entry.read_text(encoding="utf-8") for entry in (resources.files("pipeline_engine") / "web").iterdir()
}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}
PAGE = FILES["index.html"]


async def test_each_file_has_its_type_and_the_policy(autojump_clock: MockClock) -> None:
    types = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    async with open_api() as api:
        for name, text in FILES.items():
            answer = await api.ask("GET", f"/ui/{name}")
            assert (answer.status, answer.body.decode()) == (200, text)
            assert answer.headers["content-type"].partition(";")[0] == types[name.rpartition(".")[2]]
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
            assert "unsafe" not in policy
        assert (await api.ask("GET", "/ui/")).body.decode() == PAGE


async def test_a_browser_asks_each_time_and_is_sent_only_what_has_changed(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        first = await api.ask("GET", "/ui/app.js")
        assert first.headers["cache-control"] == "no-cache"
        again = await api.ask("GET", "/ui/app.js", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", first.headers["etag"])
        assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
        other = await api.ask("GET", "/ui/dom.js", headers={"If-None-Match": first.headers["etag"]})
        assert other.status == 200


@pytest.mark.parametrize(
    "path", ["/ui/none.js", "/ui/..", "/ui/../app.py", "/ui/./app.js", "/ui/a/b.js", "/ui/APP.JS", "/ui/__init__.py"]
)
async def test_nothing_but_its_files_is_there(autojump_clock: MockClock, path: str) -> None:
    async with open_api() as api:
        answer = await api.ask("GET", path)
        assert (answer.status, answer.error["code"]) == (404, "not_found")


async def test_the_page_is_there_while_the_daemon_starts_and_cannot_be_written(autojump_clock: MockClock) -> None:
    async with open_api(starting=True) as api:
        assert (await api.ask("GET", "/ui/")).status == 200
        assert (await api.ask("POST", "/ui/", {})).status == 405
        head = await api.ask("HEAD", "/ui/")
        assert (head.status, head.headers["content-length"]) == (200, str(len(PAGE.encode())))


async def test_an_address_without_the_last_slash_leads_to_the_page(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        answer = await api.ask("GET", "/ui")
        # Relative: so it is right behind a proxy that has the daemon under a path of its own.
        assert (answer.status, answer.headers["location"], answer.body) == (308, "ui/", b"")


async def test_the_page_needs_no_key_but_is_nothing_for_other_sites(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        settings = GuardSettings(allowed_hosts=frozenset({b"localhost"}), api_key=Secret("k-51"))
        api.app = Guard(api.app, settings=settings)
        answer = await api.ask("GET", "/ui/")
        assert answer.status == 200
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["referrer-policy"] == "no-referrer"
        for others in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
            assert (await api.ask("GET", "/ui/", headers=others)).status == 403
        assert (await api.ask("GET", "/")).status == 401


async def test_the_root_names_the_places_to_go_on_to(autojump_clock: MockClock) -> None:
    async with open_api(starting=True) as api:
        answer = await api.ask("GET", "/")
        links = {"health": "/health", "openapi": "/openapi.json", "ui": "/ui/"}
        assert answer.json == {"name": "Pipeline Engine", "version": __version__, "links": links}
        assert [(await api.ask("GET", link)).status for link in links.values()] == [200, 200, 200]


def test_the_page_needs_nothing_from_elsewhere_and_all_that_it_needs_is_there() -> None:
    named = set(re.findall(r'(?:href|src)="([^"#]+)', PAGE))
    for text in SCRIPTS.values():
        named |= {name.removeprefix("./") for name in re.findall(r'from "([^"]+)"', text)}
    assert named == set(FILES) - {"index.html"}
    for name, text in FILES.items():
        assert re.findall(r"(?:https?:)?//[a-z][^ ]+", text.replace("http://www.w3.org/2000/svg", "")) == [], name


def test_no_text_can_become_markup_or_code() -> None:
    assert re.findall(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", PAGE) == []
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|createContextualFragment|srcdoc"
    for name, text in SCRIPTS.items():
        assert re.findall(ways, text) == [], name


def test_the_key_is_kept_for_the_tab_alone() -> None:
    for name, text in SCRIPTS.items():
        assert re.findall(r"localStorage|document\.cookie|indexedDB", text) == [], name
