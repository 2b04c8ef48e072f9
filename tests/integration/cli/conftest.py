"""One real daemon for the commands of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.daemon_process import DaemonProcess

from pipeline_engine_sdk import PipelineEngineClient


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    daemon = DaemonProcess(tmp_path_factory.mktemp("d") / "home").start()
    yield daemon
    daemon.close()


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[PipelineEngineClient]:
    with PipelineEngineClient(daemon.url) as client:
        yield client
