"""What the two clients share without doing I/O: their settings, and the requests that they send."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from . import _calls
from ._calls import Call, Object
from ._following import Following
from ._models import Job, JobPage, JobRequest
from ._retries import Attempts, Patience
from ._settings import CONNECT_TIMEOUT, SILENCE_TIMEOUT, find_target

TIMEOUT = 30.0  # seconds
GIVE_UP_AFTER = 60.0  # seconds
MAX_RETRIES = 2


class ClientCore:
    """A client's settings. See the clients for what the arguments mean."""

    def __init__(
        self, base_url: str | None, *, uds: str | os.PathLike[str] | None, api_key: str | None, max_retries: int
    ) -> None:
        self.target = find_target(base_url, uds, api_key, os.environ)
        self.max_retries = max_retries

    def request(self, call: Call[Any], *, timeout_s: float | None) -> httpx.Request:
        """The request of a call, which waits so many seconds for each piece of the answer; None is for ever."""
        return httpx.Request(
            call.method,
            self.target.base_url + call.path,
            params=tuple(call.params) or None,
            headers=self._headers(call),
            content=call.body,
            extensions={"timeout": httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT).as_dict()},
        )

    def stream_request(self, call: Call[None]) -> httpx.Request:
        return self.request(call, timeout_s=SILENCE_TIMEOUT)

    def attempts(self, call: Call[Any], *, give_up_after_s: float | None = None, is_long: bool = False) -> Attempts:
        """The attempts of a call: a few, or for one that waits for a job (`is_long`) as many as the time allows."""
        max_retries = None if is_long else self.max_retries
        patience = Patience(max_retries=max_retries, give_up_after_s=give_up_after_s)
        return Attempts(call, self.target, patience)

    def submitting(self, request: JobRequest | Object, *, key: str | None, give_up_after_s: float | None) -> Following:
        submit = _calls.submit_and_stream(request, key=key)
        patience = Patience(max_retries=None, give_up_after_s=give_up_after_s)
        return Following(target=self.target, patience=patience, submit=submit)

    def following(self, job_id: str, *, after_seq: int, give_up_after_s: float | None) -> Following:
        patience = Patience(max_retries=None, give_up_after_s=give_up_after_s)
        return Following(target=self.target, patience=patience, job_id=job_id, after_seq=after_seq)

    def _headers(self, call: Call[Any]) -> Mapping[str, str]:
        json = {"Content-Type": "application/json"} if call.body is not None else {}
        return {**self.target.headers, **json, **call.headers}


class JobPages:
    """Goes through all pages of a list of jobs: gives the next job, or says which page is needed for it."""

    def __init__(
        self,
        *,
        status: str | None,
        pipeline_type: str | None,
        labels: Mapping[str, str] | None,
        page_size: int,
    ) -> None:
        self._filter: dict[str, Any] = {"status": status, "pipeline_type": pipeline_type, "labels": labels}
        self._page_size = page_size
        self._jobs: deque[Job] = deque()
        self._cursor: str | None = None
        self._has_more = True

    def next_call(self) -> Call[JobPage] | None:
        """The call for the next page, if it is needed and there is one."""
        if self._jobs or not self._has_more:
            return None
        return _calls.list_jobs(**self._filter, limit=self._page_size, cursor=self._cursor)

    def take(self, page: JobPage) -> None:
        self._jobs.extend(page.jobs)
        self._cursor = page.next_cursor
        self._has_more = page.next_cursor is not None

    def pop(self) -> Job | None:
        """The next job; None after the last."""
        return self._jobs.popleft() if self._jobs else None


class PartFile:
    """A file that is written under another name (`PATH.part`), and there only when the block ends well."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._part = self._path.with_name(f"{self._path.name}.part")
        self._file = self._part.open("wb")
        self.size = 0  # bytes

    def write(self, piece: bytes) -> None:
        self.size += self._file.write(piece)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        if exc is None:
            self._part.replace(self._path)
        else:
            self._part.unlink(missing_ok=True)
