"""Pages of other sites, in a real browser, against a real daemon: they read nothing and start nothing."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.browser_setting import Reply, open_http_server
from tests.daemon_process import DaemonProcess, until

from pipeline_engine_sdk import PipelineEngineClient

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.timeout(180)

ATTACKS = (Path(__file__).parent / "attacks.js").read_text(encoding="utf-8")
EMPTY = "<!doctype html><title>a page</title><body></body>"
WORKER = """
self.addEventListener("message", async (event) => {
  const [url, method] = [event.data, event.data.endsWith("cancel") ? "POST" : "GET"];
  const got = [];
  for (const mode of ["cors", "no-cors"]) {
    try {
      const response = await fetch(url, { method, mode });
      got.push(await response.text());
    } catch {}
  }
  event.ports[0].postMessage(got.join("") || null);
});
self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
"""
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SECRET = "canary-in-a-source-51c0"
REQUEST: dict[str, Any] = {"pipeline_type": "words.v1", "input": {"sources": [{"content": "x"}]}}
PATHS = ("another port", "another name", "a file", "a data address", "a rebound name", "a rebound name, another port")


def answer_page(method: str, path: str, body: bytes) -> Reply:
    """A site of anybody's; and an image server."""
    if path == "/worker.js":
        return 200, "text/javascript", WORKER.encode()
    if method == "POST":
        return 200, "application/json", f'{{"data": [{{"b64_json": "{DOT}"}}]}}'.encode()
    return 200, "text/html", EMPTY.encode()


@pytest.fixture(scope="module")
def site() -> Iterator[int]:
    """The port of another site, which is on this machine too."""
    with open_http_server(answer_page) as port:
        yield port


class Target:
    """A daemon with something to read (a finished job with an image) and something to stop (a job that runs)."""

    def __init__(self, daemon: DaemonProcess, site: int) -> None:
        self.url = daemon.url
        self.port = int(daemon.url.rpartition(":")[2])
        self.client = PipelineEngineClient(daemon.url)
        profile = {"id": "draws", "kind": "image", "base_uri": f"http://127.0.0.1:{site}", "default_model": "m"}
        self.client.upsert_provider_profile(profile)
        step = {"id": "i", "kind": "image", "provider_profile_id": "draws", "output_type": "image", "export": True}
        drawn = self.client.run_job({
            "pipeline": {"type": "image.v1", "steps": [{**step, "prompt": {"user": "a dot"}}]},
            "input": {"sources": [{"content": SECRET}]},
        })  # fmt: skip
        assert drawn.result is not None, drawn.error
        artifact = drawn.result.items[0].data["artifact"]["id"]
        self.image = f"{self.url}/v1/jobs/{drawn.id}/artifacts/{artifact}"
        assert self.client.get_artifact(drawn.id, artifact) == base64.b64decode(DOT)
        self.finished = drawn.id

    def start_running_job(self) -> str:
        sleeps = {"pipeline_type": "shell.v1", "input": {"sources": [], "options": {"script": "sleep 600"}}}
        job = self.client.create_job(sleeps).id
        until(lambda: self.client.get_job(job).status == "running")
        return job

    def state(self) -> dict[str, Any]:
        """All that a caller could have changed."""
        return {
            "jobs": {job.id: job.status for job in self.client.list_jobs(limit=500).jobs},
            "pipelines": [pipeline.type for pipeline in self.client.list_pipelines()],
            "providers": [profile.id for profile in self.client.list_providers()],
        }


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, site: int) -> Iterator[Target]:
    daemon = DaemonProcess(tmp_path_factory.mktemp("d") / "home").start()
    target = Target(daemon, site)
    yield target
    target.client.close()
    daemon.kill()


def visit(page: Page, which: str, *, target: Target, site: int, folder: Path) -> None:
    """Show an empty page of that origin, with the attacks at hand."""
    rebound = f"http://evil.example:{target.port}/page"
    ours = f"{target.url}/page"
    (folder / "page.html").write_text(EMPTY, encoding="utf-8")
    address = {
        "another port": f"http://127.0.0.1:{site}/page",
        "another name": f"http://localhost:{site}/page",
        "a file": f"file://{folder}/page.html",
        "a data address": f"data:text/html,{EMPTY}",
        "a rebound name": rebound,
        "a rebound name, another port": f"http://evil.example:{site}/page",
        "the daemon's own": ours,
    }[which]
    # What the name led to before it was rebound; and a page of the daemon's own origin that is free to do anything.
    page.route(lambda url: url in (rebound, ours), lambda route: route.fulfill(body=EMPTY, content_type="text/html"))
    page.goto(address)
    page.evaluate(ATTACKS)


def watch_statuses(page: Page) -> list[tuple[str, int]]:
    """Address and status of each answer that the browser gets from now on, those that it keeps from the page too."""
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    addresses: dict[str, str] = {}
    statuses: list[tuple[str, int]] = []
    session.on("Network.requestWillBeSent", lambda sent: addresses.update({sent["requestId"]: sent["request"]["url"]}))
    session.on(
        "Network.responseReceivedExtraInfo",
        lambda got: statuses.append((addresses.get(got["requestId"], ""), got["statusCode"])),
    )
    return statuses


def base_of(which: str, target: Target) -> str:
    """A rebound name leads to the daemon: to the page it is the same origin, so nothing but the daemon stops it."""
    return f"http://evil.example:{target.port}" if which == "a rebound name" else target.url


@pytest.mark.parametrize("which", PATHS)
def test_a_page_of_another_site_reads_nothing(
    page: Page, target: Target, site: int, tmp_path: Path, which: str
) -> None:
    base = base_of(which, target)
    visit(page, which, target=target, site=site, folder=tmp_path)
    statuses = watch_statuses(page)
    image = target.image.replace(target.url, base)
    got = page.evaluate("([base, job, image]) => readAll(base, job, image)", [base, target.finished, image])
    if which == "a rebound name":  # the page may read what it is told, which is that it has no business here
        got = {name: text for name, text in got.items() if text and '"forbidden"' not in text and text != "403 "}
        # Of its own origin it is the daemon's answer, and no error of the network, that ends these.
        got = {name: text for name, text in got.items() if name not in ("frame", "frame of the page")}
    assert {name: text for name, text in got.items() if text is not None} == {}
    if which in ("another port", "another name"):  # the only ones that browsers let have a service worker
        assert "a page" in page.evaluate("() => fetchInServiceWorker(location.href)")
    # What was refused was refused by the daemon, and not by the browser alone.
    reached = [status for url, status in statuses if url.startswith(base)]
    assert len(reached) >= 15
    assert set(reached) == {403}
    others = [text for other in page.context.pages if SECRET in (text := other.content())]
    assert others == []


@pytest.mark.parametrize("which", PATHS)
def test_a_page_of_another_site_starts_and_stops_nothing(
    page: Page, target: Target, site: int, tmp_path: Path, which: str
) -> None:
    job = target.start_running_job()
    before = target.state()
    assert before["jobs"][job] == "running"
    visit(page, which, target=target, site=site, folder=tmp_path)
    got = page.evaluate(
        "([base, job, request]) => startAll(base, job, request)", [base_of(which, target), job, REQUEST]
    )
    assert {name: text for name, text in got.items() if text and '"forbidden"' not in text} == {}
    assert target.state() == before
    target.client.cancel_job(job)


def test_the_same_attempts_succeed_from_the_daemons_own_origin(
    page: Page, target: Target, site: int, tmp_path: Path
) -> None:
    job = target.start_running_job()
    before = target.state()
    visit(page, "the daemon's own", target=target, site=site, folder=tmp_path)
    read = page.evaluate(
        "([base, job, image]) => readAll(base, job, image)", [target.url, target.finished, target.image]
    )
    assert SECRET in read[f"fetch cors /v1/jobs/{target.finished}"]
    assert target.finished in read["fetch no-cors"]
    assert target.finished in read["xhr"]
    assert read["image"] == "loaded 1"
    assert read["event source"] == "open"
    started = page.evaluate("([base, job, request]) => startAll(base, job, request)", [target.url, job, REQUEST])
    assert started["fetch cors application/json"].startswith("202 ")
    assert started["fetch cors text/plain"].startswith("415 ")
    assert started["fetch PUT"].startswith("201 ")
    after = target.state()
    assert len(after["jobs"]) > len(before["jobs"])
    assert started["fetch cors cancel"].startswith("200 ")
    assert job not in after["jobs"]  # cancelled, and then deleted
    assert set(after["pipelines"]) - set(before["pipelines"]) == {"evil.v1"}


CALLS = """
async ([base, request, key]) => {
  const headers = { Authorization: `Bearer ${key}`, "Content-Type": "application/json" };
  const post = { method: "POST", headers, body: JSON.stringify(request) };
  const submitted = await fetch(`${base}/v1/jobs`, post);
  const { job } = await submitted.json();
  const stream = await fetch(`${base}/v1/jobs/${job.id}/stream`, { headers });
  const lines = (await stream.text()).trim().split("\\n").map((line) => JSON.parse(line).event);
  const refused = await fetch(`${base}/v1/jobs`);
  return {
    location: submitted.headers.get("Location"),
    events: [lines[0], lines.at(-1)],
    deleted: (await fetch(`${base}/v1/jobs/${job.id}`, { method: "DELETE", headers })).status,
    refused: [refused.status, (await refused.json()).error.code],
    withoutOrigin: await fetch(`${base}/v1/jobs`, { mode: "no-cors" }).then(() => "read", () => "nothing"),
  };
}
"""


def test_a_page_of_an_allowed_origin_can_do_what_the_api_can_do_and_another_port_still_cannot(
    page: Page, site: int, tmp_path: Path
) -> None:
    key = "k-3f7a"
    daemon = DaemonProcess(tmp_path / "home")
    with (daemon.home / "config.toml").open("a", encoding="utf-8") as file:
        file.write(f'\n[http]\nallowed_origins = ["http://localhost:{site}"]\n')
    daemon.api_key = key
    daemon.start()
    try:
        page.goto(f"http://localhost:{site}/page")
        did = page.evaluate(CALLS, [daemon.url, REQUEST, key])
        assert did.pop("location").startswith("/v1/jobs/job_")
        assert did == {
            "events": ["job_queued", "stream_finished"],
            "deleted": 204,
            "refused": [401, "unauthorized"],
            "withoutOrigin": "nothing",
        }
        with PipelineEngineClient(daemon.url, api_key=key) as client:
            assert client.list_jobs().jobs == []
            page.goto(f"http://127.0.0.1:{site}/page")  # another origin, at the same place
            with pytest.raises(Exception, match="Failed to fetch"):
                page.evaluate(CALLS, [daemon.url, REQUEST, key])
            assert client.list_jobs().jobs == []
    finally:
        daemon.kill()
