"""The page under /ui/ in a real browser, against a real daemon and a scripted model server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from tests.browser_setting import open_http_server, open_model_server
from tests.daemon_process import DaemonProcess, until
from tests.scripted_server import Reply, ScriptedServer

from pipeline_engine_sdk import PipelineEngineClient

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.timeout(120)

#: Runs wherever it is taken for markup; each run adds to `window.hacked`.
XSS = '"><img src=x onerror="hacked()"><script>hacked()</script><svg onload=hacked()>javascript:hacked()'
DONE = b"data: [DONE]\n\n"
LONG = 10_000  # tokens


def said(*pieces: str) -> list[dict[str, Any]]:
    return [{"model": "demo-1", "choices": [{"index": 0, "delta": {"content": one}}]} for one in pieces]


STOP = {"model": "demo-1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE = {"model": "demo-1", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
STALLS = Reply.sse(*said("Hel", "lo, "), end="stall")
HELLO = Reply.sse(*said("Good ", "day"), STOP, USAGE, DONE)

SCHEMA = {
    "type": "object",
    "properties": {
        "tone": {"enum": ["plain", "warm"], "default": "plain", "description": "How it is said."},
        "words": {"type": "integer", "minimum": 1},
        "notes": {"type": "boolean"},
    },
    "required": ["words"],
}


def pipeline(url: str) -> dict[str, Any]:
    where = {"base_uri": f"{url}/v1", "default_model": "demo-1"}
    model = {"kind": "llm", "provider_profile_id": "default-openai", "provider_override": where}
    return {
        "type": "greet.v1",
        "description": "Greets whoever is named",
        "options_schema": SCHEMA,
        "steps": [
            {"id": "names", "name": "Names", "kind": "map", "mode": "fanout", "config": {"map": "identity"}},
            {"id": "greet", "name": "Greeting", "depends_on": ["names"], "export": True, **model,
             "prompt": {"user": "{{ options.tone | default('plain') }}, {{ options.words }}: {{ sources[0].content }}"}},
            {"id": "end", "kind": "reduce", "depends_on": ["greet"], "export": True, "config": {"reduce": "concat"}},
        ],
    }  # fmt: skip


class Stage:
    """A daemon with the pipeline greet.v1, whose model server says what the test wants, and the page."""

    def __init__(self, page: Page, daemon: DaemonProcess, server: ScriptedServer) -> None:
        self.page = page
        self.daemon = daemon
        self.server = server
        self.client = PipelineEngineClient(daemon.url, api_key=daemon.api_key or None)
        self.client.put_pipeline(pipeline(server.url))
        self.complaints: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda one: self.complaints.append(one.text) if "Content Security" in one.text else None)
        page.add_init_script("window.hacks = 0; window.hacked = () => { window.hacks += 1; };")

    def open(self, path: str = "/jobs") -> None:
        with self.leaving():
            self.page.goto(f"{self.daemon.url}/ui/#{path}")

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Waits at its end until the view that was there at its start is gone: another may hold the same words."""
        self.page.evaluate("document.querySelector('.view')?.setAttribute('data-left', '')")
        yield
        self.page.locator(".view:not([data-left])").wait_for(state="attached")

    def follow(self, link: str) -> None:
        with self.leaving():
            self.page.get_by_role("link", name=link).click()

    def submit(self, **request: Any) -> str:
        options = {"words": 3, **request.pop("options", {})}
        sources = request.pop("sources", [{"content": "Ada", "label": "who"}])
        body = {"pipeline_type": "greet.v1", "input": {"sources": sources, "options": options}, **request}
        return self.client.create_job(body).id

    def sees(self, text: str, within: str = "main") -> None:
        self.page.locator(within).get_by_text(text).first.wait_for()


@contextmanager
def open_stage(page: Page, home: Path, *replies: Reply, api_key: str = "") -> Iterator[Stage]:
    with open_model_server(*replies) as server:
        daemon = DaemonProcess(home)
        daemon.api_key = api_key
        daemon.start()
        stage = Stage(page, daemon, server)
        try:
            yield stage
            assert stage.complaints == []
            assert page.evaluate("window.hacks") == 0
        finally:
            stage.client.close()
            daemon.kill()


def test_a_job_is_submitted_followed_cancelled_and_run_again(page: Page, tmp_path: Path) -> None:
    with open_stage(page, tmp_path / "home", STALLS, HELLO) as stage:
        stage.open("/run/greet.v1")
        page.get_by_label("tone").select_option("warm")
        page.get_by_label("words *").fill("3")
        page.get_by_label("Text of source 1").fill("Ada")
        page.get_by_label("Label", exact=True).fill("who")
        page.get_by_role("button", name="Run", exact=True).click()
        page.wait_for_url("**/ui/#/jobs/job_*")
        stage.sees("Hello,", ".live")  # while the model is still speaking
        [job] = stage.client.list_jobs().jobs
        assert job.status == "running"
        assert stage.server.requests[0].json["messages"][-1]["content"] == "warm, 3: Ada"
        page.get_by_role("button", name="Cancel").click()
        stage.sees("cancelled", ".facts")
        assert stage.client.get_job(job.id).status == "cancelled"
        page.get_by_role("button", name="Run again").click()
        page.get_by_label("From").select_option("Greeting")
        page.get_by_role("dialog").get_by_role("button", name="Run", exact=True).click()
        stage.sees("succeeded", ".facts")
        stage.sees("Good day", "article")
        stage.sees("7 in, 2 out", ".facts")
        shown = [one.inner_text() for one in page.get_by_role("button").all() if one.is_visible()]
        assert shown == ["Run again …", "Delete", "Show the items of all steps"]
        [again, _] = stage.client.list_jobs().jobs
        assert (again.parent_job_id, again.rerun_from_step) == (job.id, "greet")
        assert page.get_by_role("row", name="Names skipped").inner_text().split("\t")[1].split() == ["skipped", "kept"]
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Delete").click()
        page.wait_for_url("**/ui/#/jobs")
        page.locator(".jobs tbody tr").first.wait_for()
        assert [one.id for one in stage.client.list_jobs().jobs] == [job.id]


def test_what_is_wrong_with_a_request_is_told_at_the_form(page: Page, tmp_path: Path) -> None:
    with open_stage(page, tmp_path / "home", HELLO) as stage:
        stage.open("/run/greet.v1")
        page.get_by_label("words *").fill("3")
        page.get_by_label("Other options, as JSON").fill('{"tone": "loud"}')
        page.get_by_role("button", name="Run", exact=True).click()
        stage.sees("'loud' is not one of", "[role=alert]")
        page.get_by_label("Other options, as JSON").fill("{")
        page.get_by_role("button", name="Run", exact=True).click()
        stage.sees("The options are not JSON", "[role=alert]")
        assert stage.client.list_jobs().jobs == []


def test_files_that_are_dropped_become_sources_whatever_they_hold(page: Page, tmp_path: Path) -> None:
    with open_stage(page, tmp_path / "home", HELLO) as stage:
        stage.open("/run/words.v1")
        page.get_by_label("Text of source 1").wait_for()
        page.evaluate("""() => {
          const data = new DataTransfer();
          data.items.add(new File(["é\\n"], "text.txt"));
          data.items.add(new File([new Uint8Array([255, 0])], "bytes.bin"));
          document.querySelector("form.run").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
        }""")
        page.locator("fieldset").nth(1).wait_for()
        page.get_by_role("button", name="Run", exact=True).click()
        stage.sees("2 sources", "article")
        [job] = stage.client.list_jobs().jobs
        given = stage.client.get_job(job.id).input
        assert given is not None
        assert [(one.label, one.content, one.content_base64) for one in given.sources] == [
            ("text.txt", "é\n", None),
            ("bytes.bin", "", "/wA="),
        ]


def test_the_list_is_live_has_pages_and_can_be_filtered(page: Page, tmp_path: Path) -> None:
    with open_stage(page, tmp_path / "home", HELLO) as stage:
        for _ in range(30):
            stage.submit(dry_run=True)
        stage.open()
        page.locator(".jobs tbody tr").nth(24).wait_for()
        assert page.locator(".jobs tbody tr").count() == 25
        first = page.locator(".jobs tbody tr a").first
        first.focus()
        page.get_by_role("button", name="Older").click()
        page.locator(".jobs tbody tr").nth(5).wait_for(state="detached")
        assert page.locator(".jobs tbody tr").count() == 5
        page.get_by_role("button", name="Newer").click()
        page.locator(".jobs tbody tr").nth(24).wait_for()
        new = stage.submit(dry_run=True)
        page.get_by_text(new).wait_for()  # without a click
        page.get_by_label("Status").select_option("failed")
        stage.sees("No jobs here")


def test_texts_of_strangers_are_never_markup(page: Page, tmp_path: Path) -> None:
    answers = [Reply.sse(*said(XSS, "done"), STOP, DONE), Reply.sse(*said(XSS, "live"), end="stall")]
    with open_stage(page, tmp_path / "home", *answers) as stage:
        kind = XSS.replace("/", "")  # which no type can have
        definition = {**pipeline(stage.server.url), "type": kind, "description": XSS}
        definition["options_schema"] = {"properties": {XSS: {"type": "string", "description": XSS, "default": XSS}}}
        definition["steps"][1]["name"] = XSS
        stage.client.put_pipeline(definition)
        request = {
            "pipeline_type": kind,
            "input": {"sources": [{"kind": XSS, "label": XSS, "content": XSS}], "options": {"words": XSS}},
            "labels": {XSS: XSS},
        }
        job = stage.client.create_job(request).id
        until(lambda: stage.client.get_job(job).status == "succeeded")
        stage.open(f"/jobs/{job}")
        stage.sees(f"{XSS}done", "article")
        page.get_by_text("Prompt").click()
        page.get_by_text("Show the items of all steps").click()
        page.locator("section[aria-label='All items'] article").nth(2).wait_for()
        page.locator("section[aria-label=Input] summary").first.click()
        assert (page.locator("svg.graph").text_content() or "").count("<img src") == 2  # a title and a name
        stage.open("/jobs")
        stage.sees(kind, ".jobs")
        address = quote(kind, safe="")
        for path in ("/run", f"/run/{address}", f"/pipelines/{address}", f"/jobs/{quote(XSS, safe='')}", f"/{XSS}"):
            stage.open(path)
            page.locator("main h1, main [role=alert]").first.wait_for()
        for path in ("/pipelines", "/providers", "/status"):
            stage.open(path)
            page.locator("main h1").wait_for()
        live = stage.client.create_job(request).id
        stage.open(f"/jobs/{live}")
        stage.sees(f"{XSS}live", ".live")
        assert page.locator("main script, main svg[onload], main img[src=x]").count() == 0


def test_the_key_is_asked_for_kept_in_the_tab_and_forgotten(page: Page, tmp_path: Path) -> None:
    with open_stage(page, tmp_path / "home", HELLO, api_key="k-92d1") as stage:
        addresses: list[str] = []
        page.on("request", lambda request: addresses.append(request.url))
        job = stage.submit()
        stage.open(f"/jobs/{job}")
        dialog = page.get_by_role("dialog", name="API key")
        dialog.get_by_label("Key").fill("wrong")
        dialog.get_by_role("button").click()
        stage.sees("This is not the key", "dialog")
        page.keyboard.press("Escape")
        dialog.get_by_label("Key").fill("k-92d1")
        page.keyboard.press("Enter")
        stage.sees("Good day", "article")
        page.reload()
        stage.sees("Good day", "article")
        assert page.evaluate("[document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 1]
        assert any("/v1/jobs/" in address for address in addresses)
        assert not any("k-92d1" in address for address in addresses)
        assert "k-92d1" not in stage.daemon.log.read_text(encoding="utf-8")
        page.get_by_role("button", name="Forget the key").click()
        dialog.wait_for()
        assert page.evaluate("sessionStorage.length") == 0


def test_a_restart_of_the_daemon_voids_what_an_attempt_had_said_and_the_page_goes_on(
    page: Page, tmp_path: Path
) -> None:
    with open_stage(page, tmp_path / "home", STALLS, Reply.sse(*said("Anew"), end="stall"), HELLO) as stage:
        streams: list[str] = []
        page.on("request", lambda request: streams.append(request.url) if "/stream?" in request.url else None)
        stage.open(f"/jobs/{stage.submit()}")
        stage.sees("Hello,", ".live")
        stage.daemon.kill()
        page.locator("#offline").wait_for()
        stage.daemon.start()
        page.get_by_text("Anew").wait_for()
        assert page.locator(".said").inner_text() == "Anew"  # of attempt 2, and nothing of attempt 1
        page.locator("#offline").wait_for(state="hidden")
        stage.daemon.kill()
        stage.daemon.start()
        stage.sees("Good day", "article")
        page.locator(".live").wait_for(state="hidden")
        seqs = [int(address.rpartition("after_seq=")[2]) for address in streams]
        assert seqs[0] == 0 < seqs[1] < seqs[-1]  # it never asks again for what it has


def test_a_view_that_could_not_be_loaded_can_be_tried_again(page: Page, tmp_path: Path) -> None:
    with open_stage(page, tmp_path / "home", HELLO) as stage:
        stage.open("/jobs")
        page.get_by_role("heading", name="Jobs").wait_for()
        stage.daemon.kill()
        stage.open("/pipelines")
        stage.sees("The daemon cannot be reached", "[role=alert]")
        stage.daemon.start()
        page.get_by_role("button", name="Try again").click()
        page.get_by_role("link", name="greet.v1").wait_for()


def test_ten_thousand_tokens_come_whole_and_keep_the_page_fast(page: Page, tmp_path: Path) -> None:
    pieces = [f"{number} word{chr(10) if number % 12 == 0 else ''} " for number in range(LONG)]
    answer = Reply.sse(*said(*pieces, "THE END"), end="stall")
    with open_stage(page, tmp_path / "home", answer) as stage:
        page.add_init_script("""
          window.longest = 0;
          new PerformanceObserver((list) => {
            for (const one of list.getEntries()) window.longest = Math.max(window.longest, one.duration);
          }).observe({ type: "longtask" });
        """)
        stage.open(f"/jobs/{stage.submit()}")
        stage.sees("THE END", ".live")
        text = page.evaluate("[...document.querySelectorAll('.said > div')].map((one) => one.textContent).join('\\n')")
        assert text == "".join(pieces) + "THE END"
        assert page.evaluate("window.longest") < 1000  # milliseconds; it is a tenth of that on a machine at rest


def test_images_are_shown_although_they_need_the_key(page: Page, tmp_path: Path) -> None:
    dot = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    body = json.dumps({"data": [{"b64_json": dot}]}).encode()
    with (
        open_http_server(lambda method, path, data: (200, "application/json", body)) as port,
        open_stage(page, tmp_path / "home", HELLO, api_key="k") as stage,
    ):
        profile = {"id": "draws", "kind": "image", "base_uri": f"http://127.0.0.1:{port}", "default_model": "m"}
        stage.client.upsert_provider_profile(profile)
        step: dict[str, Any] = {"id": "i", "name": "A dot", "kind": "image", "provider_profile_id": "draws"}
        step |= {"output_type": "image", "export": True, "prompt": {"user": "a dot"}}
        job = stage.client.run_job({"pipeline": {"type": "image.v1", "steps": [step]}})
        stage.open(f"/jobs/{job.id}")
        page.get_by_role("dialog").get_by_label("Key").fill("k")
        page.keyboard.press("Enter")
        until(lambda: page.evaluate("document.querySelector('img.artifact')?.naturalWidth") == 1)
        with page.expect_download() as saving:
            page.get_by_role("button", name="Save").click()
        assert saving.value.path().read_bytes().startswith(b"\x89PNG")


def test_the_other_pages_tell_of_pipelines_providers_and_health(page: Page, tmp_path: Path) -> None:
    with open_stage(page, tmp_path / "home", HELLO) as stage:
        secret = {"id": "kept", "kind": "openai", "base_uri": stage.server.url, "api_key": "sk-canary-7"}
        stage.client.upsert_provider_profile(secret)
        job = stage.submit()
        until(lambda: stage.client.get_job(job).status == "succeeded")
        stage.open("/pipelines")
        stage.follow("greet.v1")
        page.locator("svg.graph .node").nth(2).wait_for()
        stage.sees("Greeting", "table")
        stage.follow("Providers")
        stage.sees("kept", "table")
        assert "sk-canary" not in page.content()
        stage.follow("Status")
        stage.sees("openai", "table")
        assert page.get_by_role("link", name="Status").get_attribute("aria-current") == "page"


def test_everything_can_be_done_with_the_keyboard_and_has_a_name(page: Page, tmp_path: Path) -> None:
    with open_stage(page, tmp_path / "home", HELLO) as stage:
        stage.open("/run/greet.v1")
        page.get_by_label("Text of source 1").fill("Ada")
        page.get_by_label("words *").fill("1")
        page.get_by_label("words *").press("Enter")
        stage.sees("succeeded", ".facts")
        stage.open("/jobs")
        page.reload()
        page.locator(".jobs tbody a").first.wait_for()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        for path in ("/run/greet.v1", "/jobs"):
            stage.open(path)
            page.locator("main h1").wait_for()
            unnamed = page.evaluate("""() => [...document.querySelectorAll("main input, main select, main textarea, main button")]
                .filter((one) => !one.labels?.length && !one.ariaLabel && !one.textContent.trim()).map((one) => one.outerHTML)""")
            assert unnamed == []
