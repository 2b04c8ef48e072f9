"""What a running job shows to a person: progress and tokens on a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, TextIO

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from pipeline_engine.events import EventName

TOKEN_LINES = 8  # of the text that is coming in are in sight while it does
SHOWN_CHARACTERS = 4000  # of its end; wrapping more at each refresh would be slow
KEPT_CHARACTERS = 100_000  # of its end, which stay on the screen when no result comes of it
SHOWN_ERRORS = 20  # of the items of a step
SHOWN_RAW = 200  # characters of an answer that could not be used
REFRESH = 12  # times a second, at most

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_MARKS = {
    "success": ("✓", "green"),
    "failed": ("✗", "red"),
    "skipped": ("–", "dim"),
    "cancelled": ("■", "yellow"),
    "pending": ("·", "dim"),
}


def printable(text: str) -> str:
    """The text without what would control a terminal; tabs and newlines stay."""
    return _CONTROLS.sub(lambda match: "" if match[0] == "\r" else "\N{REPLACEMENT CHARACTER}", text)


class Display(Protocol):
    """Takes the events of a job, in order."""

    def show(self, event: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class QuietDisplay:
    """Shows nothing."""

    def show(self, event: Mapping[str, Any]) -> None:
        return None

    def close(self) -> None:
        return None


class PlainDisplay:
    """One line for each step that ends and each attempt that failed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, event: Mapping[str, Any]) -> None:
        name, data = event["event"], event["data"]
        if name == EventName.STEP_RETRYING:
            error = data["error"]
            self._line(f"{_place(data)}: {error['message']}; attempt {data['attempt']} in {data['delay_s']:g} s")
        elif name == EventName.STEP_PROGRESS and "note" in data:
            self._line(f"{data['step_id']}: {data['note']}")
        elif name in (
            EventName.STEP_COMPLETED,
            EventName.STEP_FAILED,
            EventName.STEP_CANCELLED,
            EventName.STEP_SKIPPED,
        ):
            total = data.get("items_total")
            count = f" ({data.get('items_done', 0)}/{total})" if total is not None and total != 1 else ""
            reason = why_skipped(data)
            self._line(f"{data['name']}: {data['status']}{count}{f' ({reason})' if reason else ''}")
            for error in data.get("errors", ()):
                self._line(f"  {_place(error.get('details', {}))}: {error['message']}")

    def close(self) -> None:
        return None

    def _line(self, text: str) -> None:
        # When nobody reads the progress any more, or its terminal is gone, the job goes on all the same.
        with suppress(OSError):
            self._stream.write(printable(text) + "\n")
            self._stream.flush()


class LiveDisplay:
    """A table of the steps with their progress, and under it the last lines of the text that is coming in.

    When the job succeeds its results are printed next, so the text goes; else it is all that there is, and stays.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._steps: dict[str, dict[str, Any]] = {}
        self._text = ""
        self._closed = False
        self._speaker: tuple[str, str | None, int] | None = None
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=REFRESH, transient=False)
        self._live.start()

    def show(self, event: Mapping[str, Any]) -> None:
        name, data = event["event"], event["data"]
        if name == EventName.PROVIDER_CHUNK:
            self._hear(data)
        elif name == EventName.STEP_PROGRESS:
            self._steps.setdefault(data["step_id"], {}).update(items_done=data["done"], items_total=data["total"])
        elif name == EventName.STEP_RETRYING:
            self._steps.setdefault(data["step_id"], {})["note"] = (
                f"attempt {data['attempt']}: {data['error']['message']}"
            )
        elif name.startswith("step_"):
            self._steps[data["step_id"]] = dict(data)
        elif name == EventName.JOB_COMPLETED:
            self._text = ""
        elif name in (EventName.JOB_QUEUED, EventName.JOB_RESUMED):
            for execution in data.get("step_executions") or data.get("steps") or ():
                self._steps[execution["step_id"]] = dict(execution)

    def close(self) -> None:
        self._closed = True
        with suppress(OSError):  # the terminal is gone
            self._live.stop()

    def _hear(self, data: Mapping[str, Any]) -> None:
        """Follow one answer at a time: a new one takes over, so that no two are mixed."""
        speaker = (data["step_id"], data.get("shard_key"), data["attempt"])
        if speaker != self._speaker:
            if self._speaker is not None and data["index"] > 0:
                return
            self._speaker, self._text = speaker, ""
        self._text = (self._text + data["content"])[-KEPT_CHARACTERS:]

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        for step in self._steps.values():
            status = step.get("status", "running")
            mark, style = _MARKS.get(status, ("", ""))
            first: RenderableType = Text(mark, style) if mark else Spinner("dots", style="cyan")
            table.add_row(first, Text(printable(step.get("name", "")), style), self._progress(step, status))
        if not self._text:
            return table
        if self._closed:
            return Group(table, Text(""), Text(printable(self._text.rstrip("\n")), "dim"))
        width = max(20, self._console.width - 2)
        lines = Text(printable(self._text[-SHOWN_CHARACTERS:]), "dim").wrap(self._console, width)[-TOKEN_LINES:]
        return Group(table, Text(""), *lines)

    @staticmethod
    def _progress(step: Mapping[str, Any], status: str) -> RenderableType:
        total, done = step.get("items_total"), step.get("items_done", 0)
        if status == "running" and total is not None and total > 1:
            grid = Table.grid(padding=(0, 1))
            grid.add_row(ProgressBar(total=total, completed=done, width=30), Text(f"{done}/{total}", "dim"))
            return grid
        note = step.get("note") or (step.get("error") or {}).get("message", "") or why_skipped(step)
        count = f"{done} items" if total is not None and total > 1 else ""
        return Text(printable(note) or count, "dim")


def print_items(items: list[dict[str, Any]], *, console: Console | None, stream: TextIO) -> None:
    """The exported items: rendered on a terminal (`console`), else their plain texts.

    Where there is more than one, each stands under a heading with its label.
    """
    for item in items:
        if len(items) > 1:
            if console is not None:
                console.print(Text(printable(item["label"]), "bold"))
            else:
                stream.write(f"== {item['label']} ==\n")
        text = _item_text(item)
        if console is None:
            stream.write(text if text.endswith("\n") else text + "\n")
        elif item["content_type"] == "markdown":
            from rich.markdown import Markdown  # noqa: PLC0415 - slow to import, and seldom needed

            console.print(Markdown(printable(text)))
        else:
            console.print(Text(printable(text)))
    stream.flush()


def print_error(error: Mapping[str, Any], *, status: str, stream: TextIO) -> None:
    """Why a job has not succeeded."""
    details = error.get("details", {})
    place = _place(details)
    where = f" in {place}" if place else ""
    # Of a cancelled job the code says the same.
    code = "" if error["code"] == status else f"{error['code']}: "
    stream.write(printable(f"pipeline-engine: job {status}{where}: {code}{error['message']}") + "\n")
    if details.get("stderr"):
        stream.write(printable(details["stderr"].rstrip()) + "\n")
    if details.get("raw"):
        stream.write(printable(f"its text: {_shortened(details['raw'])}") + "\n")


def print_item_errors(errors: Sequence[Mapping[str, Any]], *, stream: TextIO) -> None:
    """Why items of a step have failed, each on a line; the first of them, where there are many."""
    for error in errors[:SHOWN_ERRORS]:
        raw = error.get("details", {}).get("raw")
        text = f"; its text: {_shortened(raw)}" if raw else ""
        stream.write(
            printable(f"  {_place(error.get('details', {}))}: {error['code']}: {error['message']}{text}") + "\n"
        )
    if len(errors) > SHOWN_ERRORS:
        stream.write(f"  and {len(errors) - SHOWN_ERRORS} more; --json lists them all\n")


def _shortened(text: str) -> str:
    line = repr(text[:SHOWN_RAW])
    return f"{line} … ({len(text)} characters)" if len(text) > SHOWN_RAW else line


def _item_text(item: Mapping[str, Any]) -> str:
    data = item["data"]
    if "artifact" in data:
        return f"{data['artifact']['mime_type']}, {data['artifact']['bytes']} bytes, {data['artifact']['sha256']}"
    if "embedding" in data:
        return msgspec.json.encode(data["embedding"]).decode()
    return str(data.get("text", ""))


def why_skipped(execution: Mapping[str, Any]) -> str:
    """Why a step did not run; nothing of one that did."""
    if execution.get("reused_from"):
        return f"reused from {execution['reused_from']}"
    return str(execution.get("reason", ""))


def _place(data: Mapping[str, Any]) -> str:
    """The shard, which mostly names its step; a per_item step keeps the keys of the step before it."""
    step_id, shard_key = str(data.get("step_id") or ""), str(data.get("shard_key") or "")
    if not step_id or not shard_key or shard_key.rpartition("-")[0] == step_id:
        return shard_key or step_id
    return f"{step_id} ({shard_key})"
