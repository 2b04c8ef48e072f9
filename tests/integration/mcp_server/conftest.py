"""A daemon for the tests of the MCP server, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from tests.daemon_process import DaemonProcess

from pipeline_engine_sdk import AsyncPipelineEngineClient


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    daemon = DaemonProcess(tmp_path_factory.mktemp("d") / "home").start()
    yield daemon
    daemon.close()


@pytest.fixture
async def engine(daemon: DaemonProcess) -> AsyncIterator[AsyncPipelineEngineClient]:
    async with AsyncPipelineEngineClient(daemon.url) as client:
        yield client
