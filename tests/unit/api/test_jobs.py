"""Submitting, listing, showing, cancelling, rerunning and deleting jobs over the API. Virtual time."""

from __future__ import annotations

import pytest
import trio
from tests.api_setting import body_of, open_api
from tests.engine_setting import Script, llm
from trio.testing import MockClock

from pipeline_engine.engine import EngineLimits
from pipeline_engine.errors import StoreError

SLOW = {"slow": [Script(first=60)], "hundred": [Script(tokens=["t"] * 100, delay=1)]}


async def test_an_async_job_is_accepted_as_queued(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        answer = await api.ask("POST", "/v1/jobs", body_of([llm("a")], ["hello"]))
        job = answer.json["job"]
        assert (answer.status, job["status"], job["mode"], job["last_seq"]) == (202, "queued", "async", 1)
        assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
        assert job["input"]["sources"][0]["content"] == "hello"


async def test_a_sync_job_answers_what_get_answers(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SLOW) as api:
        began = trio.current_time()
        answer = await api.ask("POST", "/v1/jobs", body_of([llm("a", "hundred")], mode="sync"))
        assert trio.current_time() - began == pytest.approx(100)  # longer than any timeout of the framework
        job = answer.json["job"]
        assert (answer.status, job["status"]) == (200, "succeeded")
        assert (await api.ask("GET", f"/v1/jobs/{job['id']}")).json["job"] == job


async def test_a_client_that_leaves_does_not_stop_its_sync_job(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SLOW) as api:
        with trio.move_on_after(5):
            await api.ask("POST", "/v1/jobs", body_of([llm("a", "slow")], mode="sync"))
        [job] = (await api.ask("GET", "/v1/jobs")).json["jobs"]
        assert job["status"] == "running"
        await api.setting.engine.wait(job["id"])
        assert (await api.ask("GET", f"/v1/jobs/{job['id']}")).json["job"]["status"] == "succeeded"


@pytest.mark.parametrize("waiting", [False, True], ids=["running", "queued"])
async def test_who_waits_for_a_job_hears_that_the_daemon_stops(autojump_clock: MockClock, *, waiting: bool) -> None:
    async with open_api(scripts=SLOW, limits=EngineLimits(max_running_jobs=1)) as api, trio.open_nursery() as nursery:
        if waiting:
            await api.submit([llm("a", "slow")])

        async def wait() -> None:
            answer = await api.ask("POST", "/v1/jobs", body_of([llm("a", "slow")], mode="sync"))
            assert (answer.status, answer.error["code"]) == (503, "unavailable")
            assert answer.error["details"]["job_id"].startswith("job_")
            heard.set()

        heard = trio.Event()
        nursery.start_soon(wait)
        await trio.sleep(1)
        await api.setting.engine.drain(0)
        await heard.wait()
        answer = await api.ask("POST", "/v1/jobs", body_of([llm("a")]))
        assert (answer.status, answer.error["code"]) == (503, "unavailable")


async def test_lists_are_filtered_and_come_in_pages_newest_first(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        made = [(await api.run([llm("a")], labels={"batch": "x", "n": str(n)}))["id"] for n in range(5)]
        await api.run([llm("a")], labels={"batch": "y"})
        seen: list[str] = []
        target = "/v1/jobs?label=batch:x&limit=2"
        cursor = ""
        while True:
            page = (await api.ask("GET", f"{target}&cursor={cursor}")).json
            seen += [job["id"] for job in page["jobs"]]
            assert all("input" not in job and "result" not in job for job in page["jobs"])
            if page["next_cursor"] is None:
                break
            cursor = page["next_cursor"]
        assert seen == made[::-1]
        one = (await api.ask("GET", "/v1/jobs?label=batch:x&label=n:3")).json["jobs"]
        assert [job["id"] for job in one] == [made[3]]
        assert (await api.ask("GET", "/v1/jobs?status=failed")).json["jobs"] == []
        assert len((await api.ask("GET", "/v1/jobs?pipeline_type=test.v1")).json["jobs"]) == 6
        assert (await api.ask("GET", "/v1/jobs?pipeline_type=other")).json == {"jobs": [], "next_cursor": None}


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=ten", "limit"),
        ("cursor=abc", "cursor"),
        ("cursor=-1", "cursor"),
        ("label=novalue", "label"),
        ("label=a:1&label=a:2", "label"),
        ("status=done", "status"),
        ("status=failed&status=queued", "status"),
        ("bogus=1", "bogus"),
    ],
)
async def test_a_list_refuses_what_it_does_not_understand(autojump_clock: MockClock, query: str, path: str) -> None:
    async with open_api() as api:
        answer = await api.ask("GET", f"/v1/jobs?{query}")
        assert (answer.status, answer.error["code"], answer.error["details"]["path"]) == (400, "invalid_request", path)


async def test_chunks_come_on_request_only(autojump_clock: MockClock) -> None:
    async with open_api(scripts={"abc": [Script(tokens="abc")]}) as api:
        job = await api.run([llm("a", "abc"), {"id": "m", "kind": "map", "config": {"map": "identity"}}], ["x"])
        assert all("chunks" not in execution for execution in job["step_executions"])
        shown = (await api.ask("GET", f"/v1/jobs/{job['id']}?include=chunks&include=input")).json["job"]
        with_chunks, without = shown["step_executions"]
        assert [chunk["content"] for chunk in with_chunks["chunks"]] == ["a", "b", "c"]
        assert with_chunks["chunks"][0] == {"step_id": "a", "attempt": 1, "index": 0, "content": "a", "kind": "text"}
        assert without["chunks"] == []
        assert (await api.ask("GET", f"/v1/jobs/{job['id']}?include=secrets")).status == 400


async def test_checkpoints(autojump_clock: MockClock) -> None:
    async with open_api(scripts={"echo": [Script(echo=True)]}) as api:
        job = await api.run([llm("a", "echo", mode="fanout")], ["x", "y"])
        points = (await api.ask("GET", f"/v1/jobs/{job['id']}/checkpoints")).json["checkpoints"]
        assert [(point["step_id"], point["shard_key"]) for point in points] == [("a", "a-0"), ("a", "a-1")]
        assert points[1]["result"]["data"]["text"] == "y"


async def test_a_running_job_cannot_be_deleted_and_a_finished_one_can(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SLOW) as api:
        job = await api.submit([llm("a", "slow")])
        answer = await api.ask("DELETE", f"/v1/jobs/{job['id']}")
        assert (answer.status, answer.error["code"]) == (409, "conflict")
        await api.setting.engine.wait(job["id"])
        gone = await api.ask("DELETE", f"/v1/jobs/{job['id']}")
        assert (gone.status, gone.body, "content-type" in gone.headers) == (204, b"", False)
        assert (await api.ask("GET", f"/v1/jobs/{job['id']}")).status == 404


async def test_cancel_answers_once_the_job_is_cancelled(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SLOW) as api:
        job = await api.submit([llm("a", "slow")])
        await trio.sleep(1)
        answer = await api.ask("POST", f"/v1/jobs/{job['id']}/cancel", {"reason": "enough"})
        assert answer.status == 200
        assert answer.json["job"]["status"] == "cancelled"
        assert answer.json["job"]["error"]["message"] == "enough"
        again = await api.ask("POST", f"/v1/jobs/{job['id']}/cancel")  # without a body
        assert (again.status, again.json) == (200, answer.json)


async def test_a_rerun_is_a_job_of_its_own(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        parent = await api.run([llm("a"), llm("b", depends_on=["a"])])
        answer = await api.ask("POST", f"/v1/jobs/{parent['id']}/rerun", {"from_step_id": "b", "reuse_upstream": True})
        job = answer.json["job"]
        assert (answer.status, job["mode"], job["parent_job_id"]) == (202, "rerun", parent["id"])
        assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
        assert (await api.ask("POST", f"/v1/jobs/{parent['id']}/rerun")).status == 202
        unknown = await api.ask("POST", f"/v1/jobs/{parent['id']}/rerun", {"from_step_id": "ghost"})
        assert (unknown.status, "ghost" in unknown.error["message"]) == (400, True)


async def test_an_idempotency_key_stands_for_one_job(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        body, key = body_of([llm("a")], ["x"]), {"Idempotency-Key": "k"}
        first = (await api.ask("POST", "/v1/jobs", body, headers=key)).json["job"]["id"]
        assert (await api.ask("POST", "/v1/jobs", body, headers=key)).json["job"]["id"] == first
        streamed = await api.ask("POST", "/v1/jobs?stream=true", body, headers=key)
        assert b'"job_id":"%b"' % first.encode() in streamed.body
        other = await api.ask("POST", "/v1/jobs", body_of([llm("a")], ["y"]), headers=key)
        assert (other.status, other.error["code"]) == (409, "conflict")
        for bad in ("", "x" * 256):
            assert (await api.ask("POST", "/v1/jobs", body, headers={"Idempotency-Key": bad})).status == 400


@pytest.mark.parametrize("form", ["", "?stream=true"])
async def test_the_key_of_a_deleted_job_starts_no_other(autojump_clock: MockClock, form: str) -> None:
    async with open_api() as api:
        body, key = body_of([llm("a")], ["x"], mode="sync"), {"Idempotency-Key": "k"}
        first = (await api.ask("POST", "/v1/jobs", body, headers=key)).json["job"]["id"]
        assert (await api.ask("DELETE", f"/v1/jobs/{first}")).status == 204
        again = await api.ask("POST", f"/v1/jobs{form}", body, headers=key)
        assert (again.status, again.error["code"]) == (410, "gone")
        assert again.error["message"] == (
            f"the Idempotency-Key 'k' was used for job {first}, which has been deleted; for a new job take another key"
        )
        assert again.error["details"] == {"job_id": first}
        assert (await api.ask("GET", "/v1/jobs")).json["jobs"] == []


async def test_a_key_for_a_rerun_stands_for_that_parent(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        parents = [(await api.run([llm("a")]))["id"] for _ in range(2)]
        key = {"Idempotency-Key": "again"}
        first = await api.ask("POST", f"/v1/jobs/{parents[0]}/rerun", headers=key)
        same = await api.ask("POST", f"/v1/jobs/{parents[0]}/rerun", headers=key)
        assert first.json["job"]["id"] == same.json["job"]["id"]
        assert (await api.ask("POST", f"/v1/jobs/{parents[1]}/rerun", headers=key)).status == 409


async def test_a_full_queue_says_when_to_come_back(autojump_clock: MockClock) -> None:
    async with open_api(scripts=SLOW, limits=EngineLimits(max_running_jobs=1, max_queued_jobs=1)) as api:
        await api.submit([llm("a", "slow")])
        await trio.sleep(1)
        await api.submit([llm("a", "slow")])
        answer = await api.ask("POST", "/v1/jobs", body_of([llm("a")]))
        assert (answer.status, answer.error["code"]) == (429, "too_many_requests")
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_store_that_fails_refuses_jobs_and_is_told_by_readiness(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_api() as api:
        assert (await api.ask("GET", "/health/ready")).status == 200

        def fail(operations: object) -> None:
            raise StoreError("the disk is gone")

        with monkeypatch.context() as patch:
            patch.setattr(api.setting.store, "write", fail)
            answer = await api.ask("POST", "/v1/jobs", body_of([llm("a")]))
            assert (answer.status, answer.error["code"]) == (503, "unavailable")
            assert (await api.ask("GET", "/health/ready")).status == 503
            assert (await api.ask("GET", "/health")).status == 200
            assert (await api.ask("GET", "/v1/jobs")).json["jobs"] == []


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "pipeline_type"),
        ({"pipeline_type": "x", "from_step_id": "a"}, "from_step_id"),
        ({"pipeline_type": "x", "reuse_upstream": True}, "reuse_upstream"),
        ({"pipeline_type": "x", "input": {"sources": [{"kind": 5}]}}, "input.sources[0].kind"),
        (body_of([llm("a", provider_override={"api_key": "sk-1"})]), "pipeline.steps[0].provider_override.api_key"),
    ],
)
async def test_a_wrong_field_is_named(autojump_clock: MockClock, body: object, path: str) -> None:
    async with open_api() as api:
        answer = await api.ask("POST", "/v1/jobs", body)
        assert (answer.status, answer.error["code"], answer.error["details"]["path"]) == (400, "invalid_request", path)
        assert b"sk-1" not in answer.body


async def test_an_unknown_pipeline_is_told_with_those_that_are_known(autojump_clock: MockClock) -> None:
    async with open_api() as api:
        answer = await api.ask("POST", "/v1/jobs", {"pipeline_type": "no.such"})
        assert (answer.status, answer.error["code"], answer.error["details"]) == (
            400,
            "unknown_pipeline",
            {"known": []},
        )
