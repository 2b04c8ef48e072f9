"""`python -m benchmarks.picture`: runs docs/images/run.yaml in a daemon, and draws its events as docs/images/run.svg."""

from __future__ import annotations

import socket
import sys
import tempfile
from pathlib import Path

import yaml

from benchmarks.processes import ROOT, Daemon
from benchmarks.timeline import draw, read_timeline
from pipeline_engine.providers.builtin import find_builtin_profile
from pipeline_engine_sdk import PipelineEngineClient

IMAGES = ROOT / "docs" / "images"
LOG = ROOT / "examples" / "data" / "system.log"
TOOLS = """
[[providers]]
id = "find-errors"
kind = "local_tool"
extra = {command = ["grep", "-m", "4", "-E", "FATAL|PANIC|ERROR: "]}

[[providers]]
id = "count-words"
kind = "local_tool"
extra = {command = ["wc", "-w"]}
"""


def main() -> None:
    """Run the pipeline and write the picture."""
    if find_builtin_profile() is None:
        sys.exit("the picture needs the profile `builtin`: run `make picture`, which installs its packages")
    definition = yaml.safe_load((IMAGES / "run.yaml").read_text(encoding="utf-8"))
    source = {"kind": "log", "label": LOG.name, "content": LOG.read_text(encoding="utf-8")}
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        listener.close()
        daemon = Daemon(Path(folder), provider_port=port, port=port, settings=TOOLS)
        daemon.start()
        try:
            with PipelineEngineClient(f"http://127.0.0.1:{port}") as client:
                request = {"pipeline": definition, "input": {"sources": [source]}}
                events = list(client.stream_job(request))
        finally:
            daemon.stop()
    if events[-1].data["status"] != "succeeded":
        sys.exit(f"the job {events[-1].data['status']}: {events[-2].data['error']}")
    (IMAGES / "run.svg").write_text(draw(read_timeline(events)), encoding="utf-8")
    print(f"wrote {IMAGES / 'run.svg'}: {len(events)} events")


if __name__ == "__main__":
    main()
