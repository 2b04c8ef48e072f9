"""A real Chromium, and small web servers whose pages it shows."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from queue import SimpleQueue

import trio
from tests.scripted_server import Reply as ModelReply
from tests.scripted_server import ScriptedServer, open_server

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox",  # it refuses to run as root with one; it shows pages of ours alone
    "--host-resolver-rules=MAP evil.example 127.0.0.1",
    # Newer browsers ask their user before a page may call this machine: what the daemon does alone is to be seen.
    "--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests",
]
#: What a handler answers: status, media type, body.
Reply = tuple[int, str, bytes]


def why_not() -> str | None:
    """Why no browser can be driven here; None when one can."""
    if CHROMIUM is None:
        return "needs Debian's package chromium"
    if find_spec("playwright") is None:
        return "needs the extra `browser`"
    return None


#: In CI a browser that is missing is a failure, not a reason to pass by.
MUST_RUN = bool(os.environ.get("CI"))


@contextmanager
def open_http_server(answer: Callable[[str, str, bytes], Reply]) -> Iterator[int]:
    """Serve on a port of 127.0.0.1, which is yielded; `answer` gets method, path and body, in a thread each."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            status, media_type, data = answer(self.command, self.path, body)
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def open_model_server(*replies: ModelReply) -> Iterator[ScriptedServer]:
    """A scripted server on a trio of its own: Playwright's calls, which wait, have this thread."""
    started: SimpleQueue[tuple[ScriptedServer, trio.Event, trio.lowlevel.TrioToken]] = SimpleQueue()

    async def main() -> None:
        async with open_server(*replies) as server:
            end = trio.Event()
            started.put((server, end, trio.lowlevel.current_trio_token()))
            await end.wait()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    server, end, token = started.get(timeout=10)
    try:
        yield server
    finally:
        token.run_sync_soon(end.set)
        thread.join()
