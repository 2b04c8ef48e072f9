"""Following jobs as NDJSON, as server-sent events and in pages. Virtual time."""

from __future__ import annotations

import json

import pytest
import trio
from tests.api_setting import body_of, ndjson, open_api
from tests.engine_setting import Script, llm, names
from trio.testing import MockClock

from pipeline_engine.api.streams import SSE
from pipeline_engine.store.base import PruneChunks

SCRIPTS = {
    "slow": [Script(first=100)],
    "ticks": [Script(tokens=[f"t{n} " for n in range(10)], delay=1)],
}


async def test_a_submitted_job_is_followed_from_its_first_event(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SCRIPTS) as api:
        answer = await api.ask("POST", "/v1/jobs?stream=true", body_of([llm("a")], ["x"], mode="sync"))
        assert (answer.status, answer.headers["content-type"]) == (200, "application/x-ndjson")
        events = ndjson(answer.body)
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert (names(events)[0], names(events)[-1]) == ("job_queued", "stream_finished")
        assert events == await api.events(events[0]["job_id"])


async def test_every_resume_point_continues_exactly(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        job = await api.run([llm("a")], ["x"])
        whole = await api.events(job["id"])
        for after in range(len(whole) + 3):
            assert await api.events(job["id"], after) == whole[after:]


async def test_events_arrive_when_they_are_made(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SCRIPTS) as api:
        job = await api.submit([llm("a", "ticks")])
        began = trio.current_time()
        arrived = []
        async with api.open("GET", f"/v1/jobs/{job['id']}/stream") as response:
            async for piece in response.pieces():
                arrived += [trio.current_time() - began] * piece.count(b'"provider_chunk"')
        assert arrived == pytest.approx(list(range(1, 11)))


async def test_silence_is_filled_with_heartbeats_without_numbers(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SCRIPTS) as api:
        job = await api.submit([llm("a", "slow")])
        events = await api.events(job["id"])
        beats = [event for event in events if event["event"] == "heartbeat"]
        assert len(beats) == 6  # 100 s of silence, one every 15 s
        assert beats[0] == {"event": "heartbeat", "job_id": job["id"], "ts": beats[0]["ts"], "data": {}}
        assert [event["seq"] for event in events if event not in beats] == list(range(1, len(events) - len(beats) + 1))
        assert "heartbeat" not in names(await api.events(job["id"]))


async def test_server_sent_events_carry_the_same_json(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SCRIPTS) as api:
        job = await api.submit([llm("a", "slow")])
        answer = await api.ask("GET", f"/v1/jobs/{job['id']}/stream", headers={"Accept": SSE})
        assert answer.headers["content-type"] == SSE
        frames = answer.body.decode().removesuffix("\n\n").split("\n\n")
        assert frames.count(": heartbeat") == 6
        shown = []
        for frame in frames:
            if frame != ": heartbeat":
                number, name, data = (line.partition(": ")[2] for line in frame.split("\n"))
                event = json.loads(data)
                assert (int(number), name) == (event["seq"], event["event"])
                shown.append(event)
        assert shown == await api.events(job["id"])


async def test_a_browser_that_reconnects_goes_on_after_its_last_event(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        job = await api.run([llm("a")])
        target = f"/v1/jobs/{job['id']}/stream?after_seq=1"
        answer = await api.ask("GET", target, headers={"Accept": SSE, "Last-Event-ID": "3"})
        ids = [int(line[4:]) for line in answer.body.decode().split("\n") if line.startswith("id: ")]
        assert ids == list(range(4, job["last_seq"] + 1))
        bad = await api.ask("GET", target, headers={"Accept": SSE, "Last-Event-ID": "three"})
        assert (bad.status, bad.error["details"]["path"]) == (400, "Last-Event-ID")
        plain = await api.ask("GET", target, headers={"Last-Event-ID": "3"})
        assert len(ndjson(plain.body)) == job["last_seq"] - 1


@pytest.mark.parametrize(
    ("accept", "is_sse"),
    [("", False), ("*/*", False), (SSE, True), (f"{SSE};q=0.9, */*", True), (f"application/x-ndjson, {SSE}", False)],
)
async def test_the_client_chooses_the_format(autojump_clock: MockClock, accept: str, *, is_sse: bool) -> None:
    async with open_api() as api:
        job = await api.run([llm("a")])
        answer = await api.ask("GET", f"/v1/jobs/{job['id']}/stream", headers={"Accept": accept})
        assert (answer.headers["content-type"] == SSE) is is_sse


async def test_what_is_wrong_is_told_before_the_stream_begins(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        missing = await api.ask("GET", "/v1/jobs/job_none/stream")
        assert (missing.status, missing.error["code"]) == (404, "not_found")
        job = await api.run([llm("a")])
        for text in ("minus", "-1", "1.5", "9007199254740992", "1&after_seq=2", "%2B1", "٣"):
            answer = await api.ask("GET", f"/v1/jobs/{job['id']}/stream?after_seq={text}")
            assert (answer.status, answer.error["details"]["path"]) == (400, "after_seq"), text
        await api.setting.writer.execute(PruneChunks(job["id"]))
        pruned = await api.ask("GET", f"/v1/jobs/{job['id']}/stream")
        assert (pruned.status, pruned.error["code"]) == (410, "gone")


async def test_head_is_refused_on_a_stream(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        job = await api.run([llm("a")])
        answer = await api.ask("HEAD", f"/v1/jobs/{job['id']}/stream")
        assert (answer.status, answer.headers["allow"]) == (405, "GET")


async def test_leaving_ends_the_subscription_and_not_the_job(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SCRIPTS) as api:
        engine = api.setting.engine
        async with api.open("POST", "/v1/jobs?stream=true", body_of([llm("a", "ticks")])) as response:
            job_id = json.loads((await response.next_piece()).split(b"\n")[0])["job_id"]
            assert engine.follower_count == 1
        assert engine.follower_count == 0
        assert (await engine.wait(job_id)).status == "succeeded"


async def test_a_client_that_never_reads_leaves_no_subscription(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SCRIPTS) as api:
        job = await api.submit([llm("a", "ticks")])
        async with api.open("GET", f"/v1/jobs/{job['id']}/stream"):
            pass
        assert api.setting.engine.follower_count == 0


async def test_a_daemon_that_stops_ends_streams_without_stream_finished(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SCRIPTS) as api:
        job = await api.submit([llm("a", "slow")])
        async with api.open("GET", f"/v1/jobs/{job['id']}/stream") as response:
            await trio.sleep(1)
            with trio.fail_after(5):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(api.setting.engine.drain, 0)
                    events = ndjson(await response.read())
        assert names(events)[0] == "job_queued"
        assert "stream_finished" not in names(events)
        assert "error" not in names(events)


async def test_a_job_that_is_deleted_under_its_stream_ends_it(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        job = await api.run([llm("a")])
        async with api.open("GET", f"/v1/jobs/{job['id']}/stream") as response:
            await api.ask("DELETE", f"/v1/jobs/{job['id']}")
            with trio.fail_after(5):
                assert names(ndjson(await response.read()))[-1:] != ["heartbeat"]


async def test_pages_add_up_to_the_stream(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SCRIPTS) as api:
        job = await api.submit([llm("a", "ticks")])
        events: list[dict] = []
        while names(events)[-1:] != ["stream_finished"]:
            after = events[-1]["seq"] if events else 0
            page = (await api.ask("GET", f"/v1/jobs/{job['id']}/events?after_seq={after}&limit=4&wait_s=5")).json
            assert 1 <= len(page["events"]) <= 4
            assert page["last_seq"] >= page["events"][-1]["seq"]
            events += page["events"]
        assert events == await api.events(job["id"])


async def test_a_page_waits_for_its_first_event_only_as_long_as_asked(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SCRIPTS) as api:
        job = await api.submit([llm("a", "slow")])
        await trio.sleep(1)
        target = f"/v1/jobs/{job['id']}/events"
        last = (await api.ask("GET", target)).json["last_seq"]
        began = trio.current_time()
        page = (await api.ask("GET", f"{target}?after_seq={last}&wait_s=30")).json
        assert page == {"events": [], "last_seq": last}
        assert trio.current_time() - began == pytest.approx(30)
        assert (await api.ask("GET", f"{target}?after_seq={last}")).json["events"] == []
        assert trio.current_time() - began == pytest.approx(30)
        page = (await api.ask("GET", f"{target}?after_seq={last}&wait_s=60")).json
        page = (await api.ask("GET", f"{target}?after_seq={last}&wait_s=60")).json
        assert page["events"][0]["seq"] == last + 1
        assert trio.current_time() - began == pytest.approx(99)
        assert (await api.ask("GET", f"{target}?wait_s=61")).status == 400
