from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pipeline_engine.cli.job_ids import LAST, find_job_id, find_job_ids
from pipeline_engine_sdk import Job, JobPage, PipelineEngineClient

IDS = ["job_01m89fan1nekawfrp810jd8nt1", "job_01m89fan1nekawfrp810jdaaaa", "job_01m88efxde1nqt53xh5ksn01m8"]
OTHER = "job_00000000000000000000000000"
TIMES = {"created_at": "2026-11-30T12:00:00.000000Z", "updated_at": "2026-11-30T12:00:00.000000Z"}


class Jobs(PipelineEngineClient):
    """A daemon that has jobs of these ids, and counts how often it is asked for them."""

    def __init__(self, ids: list[str]) -> None:
        self.ids, self.calls = ids, 0

    def list_jobs(self, *, limit: int | None = None, **_: Any) -> JobPage:
        self.calls += 1
        jobs = [
            msgspec.convert({"id": id_, "status": "running", "pipeline_type": "p", **TIMES}, Job)
            for id_ in self.ids[:limit]
        ]
        return JobPage(jobs=jobs)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("8nt1", IDS[0]),
        ("aaaa", IDS[1]),
        ("01m88", IDS[2]),
        ("job_01m88", IDS[2]),
        (IDS[0].removeprefix("job_"), IDS[0]),
        (LAST, IDS[0]),
    ],
)
def test_a_part_of_an_id_names_the_job(text: str, found: str) -> None:
    client = Jobs(IDS)
    assert (find_job_id(client, text), client.calls) == (found, 1)


def test_a_whole_id_costs_no_call_and_need_not_be_recent() -> None:
    client = Jobs(IDS)
    assert find_job_id(client, OTHER) == OTHER
    assert find_job_ids(client, [OTHER, IDS[0]]) == [OTHER, IDS[0]]
    assert client.calls == 0
    assert find_job_ids(client, [OTHER, "8nt1", "aaaa"]) == [OTHER, IDS[0], IDS[1]]
    assert client.calls == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("8nt", "'8nt' is no id of a job; a part of one has at least 4 characters"),
        ("job_01", "'job_01' is no id of a job; a part of one has at least 4 characters"),
        ("", "'' is no id of a job"),
        ("zzzz", "none of the jobs has an id that begins or ends with 'zzzz'"),
        ("job_aaaa", "none of the jobs has an id that begins or ends with 'job_aaaa'"),
        ("01m89", f"'01m89' can be any of 2 jobs:\n  {IDS[0]}  running  p\n  {IDS[1]}  running  p\n"),
        ("01m8", "'01m8' can be any of 3 jobs:\n"),  # one of them twice
    ],
)
def test_what_names_no_job_or_several_ends_the_program(
    text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        find_job_ids(Jobs(IDS), [IDS[0], text])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_there_may_be_no_newest_job_and_it_is_none_of_several(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        find_job_id(Jobs([]), LAST)
    with pytest.raises(SystemExit):
        find_job_ids(Jobs(IDS), [IDS[0], LAST])
    assert "there is no job yet" in (told := capsys.readouterr().err)
    assert "@last may be the job of somebody else" in told


def test_of_many_candidates_some_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        find_job_id(Jobs([f"job_01m89fan1nekawfrp810jd8{n:03}" for n in range(500)]), "01m8")
    told = capsys.readouterr().err
    assert (told.count("running"), "  and 490 more\n" in told) == (10, True)
