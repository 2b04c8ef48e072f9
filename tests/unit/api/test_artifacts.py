"""The bytes of artifacts over the API: from real files, so on the real clock."""

from __future__ import annotations

from pathlib import Path

from tests.api_setting import ApiSetting, open_api

from pipeline_engine.api.artifacts import PIECE
from pipeline_engine.models import JobId
from pipeline_engine.store.artifacts import ArtifactFiles
from pipeline_engine.store.base import JobChange

MAP = [{"id": "m", "kind": "map", "config": {"map": "identity"}}]
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 100


async def keep(api: ApiSetting, directory: Path, data: bytes) -> str:
    """The address of an artifact with these bytes that a finished job owns."""
    job = await api.run(MAP, ["x"])
    sha256 = ArtifactFiles(directory).save(data, job_id=JobId("job_x"))
    await api.setting.writer.execute(JobChange(job_id=JobId(job["id"]), artifacts=[sha256]))
    return f"/v1/jobs/{job['id']}/artifacts/{sha256}"


async def test_an_image_has_its_type_from_its_bytes(tmp_path: Path) -> None:
    async with open_api(artifacts=tmp_path) as api:
        target = await keep(api, tmp_path, PNG)
        answer = await api.ask("GET", target)
        assert (answer.status, answer.body) == (200, PNG)
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["content-length"] == str(len(PNG))
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-disposition"] == "inline"


async def test_anything_else_is_for_saving_and_never_for_showing(tmp_path: Path) -> None:
    async with open_api(artifacts=tmp_path) as api:
        answer = await api.ask("GET", await keep(api, tmp_path, b"<script>alert(1)</script>"))
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-disposition"].startswith("attachment")


async def test_what_a_client_has_is_not_sent_again(tmp_path: Path) -> None:
    async with open_api(artifacts=tmp_path) as api:
        target = await keep(api, tmp_path, PNG)
        etag = (await api.ask("GET", target)).headers["etag"]
        for tag in (etag, f'"other", W/{etag}', "*"):
            answer = await api.ask("GET", target, headers={"If-None-Match": tag})
            assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", etag)
        assert (await api.ask("GET", target, headers={"If-None-Match": '"other"'})).status == 200


async def test_a_large_file_comes_in_pieces(tmp_path: Path) -> None:
    async with open_api(artifacts=tmp_path) as api:
        data = bytes(range(256)) * (PIECE // 256 * 2 + 1)
        async with api.open("GET", await keep(api, tmp_path, data)) as response:
            pieces = [piece async for piece in response.pieces()]
        assert [len(piece) for piece in pieces] == [PIECE, PIECE, 256]
        assert b"".join(pieces) == data


async def test_only_the_owner_of_an_artifact_gives_it(tmp_path: Path) -> None:
    async with open_api(artifacts=tmp_path) as api:
        artifact = (await keep(api, tmp_path, PNG)).rpartition("/")[2]
        other = await api.run(MAP)
        for job_id, name in ((other["id"], artifact), ("job_none", artifact), (other["id"], "..")):
            answer = await api.ask("GET", f"/v1/jobs/{job_id}/artifacts/{name}")
            assert (answer.status, answer.error["code"]) == (404, "not_found")


async def test_a_file_that_is_gone_is_not_found(tmp_path: Path) -> None:
    async with open_api(artifacts=tmp_path) as api:
        target = await keep(api, tmp_path, PNG)
        ArtifactFiles(tmp_path).path(target.rpartition("/")[2]).unlink()
        assert (await api.ask("GET", target)).status == 404
