"""Runs what a page shows, as a reader would type it: its files are saved, its commands run in one shell, in order.

    Save this as `first.yaml`:      before a fenced block: the block is written to that file
    $ command                       in an indented block: is run, in the shell that the commands before ran in
    the lines below it              are what it prints; `…` stands for anything, alone on a line for any lines
    <!-- exits with 2 -->           before a block: the exit code of its last command (else 0)
    <!-- stop the daemon -->        what a reader does with Ctrl-C in the daemon's terminal

`pipeline-engine serve` is what the reader starts in a second terminal: it goes on while the other commands run.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PAGES = ("tutorial.md", "first-run.md", "http-api.md")  # of docs/: those that are run so
TIMEOUT = 140.0  # seconds, for a whole page
MARK = "\x1e"  # stands round the exit code behind the output of each command
ANYTHING = "…"
SAVE = re.compile(r"[Ss]ave (?:this|it) as `([\w./-]+)`")
EXIT_CODE = re.compile(r"<!-- exits with (\d+) -->")
STOP = "<!-- stop the daemon -->"

_FUNCTIONS = """
start_daemon() {
  "$@" > daemon.log 2>&1 &
  daemon=$!
  for _ in $(seq 400); do
    if grep -q 'listening on' daemon.log; then return 0; fi
    if ! kill -0 $daemon; then break; fi
    sleep 0.05
  done
  cat daemon.log
  return 1
}
stop_daemon() {
  if [ -n "$daemon" ]; then kill "$daemon"; wait "$daemon"; fi
  daemon=
}
trap stop_daemon EXIT
"""


@dataclass
class Command:
    """One command of a page; `shown` are the lines below it. Without a line number it is not the page's own."""

    text: str
    line: int = 0
    shown: list[str] = field(default_factory=list)
    exit_code: int = 0

    @property
    def is_daemon(self) -> bool:
        return self.text.startswith("pipeline-engine serve")


def commands_of(page: str) -> list[Command]:
    """What a reader of the page does, in order."""
    found: list[Command] = []
    block: list[str] | None = None  # of the fence that is open
    name = ""
    exit_code = 0
    for number, line in enumerate(page.splitlines(), start=1):
        if line.startswith("```"):
            if block is not None and name:
                found.append(Command(f"printf %s {shlex.quote(''.join(block))} > {shlex.quote(name)}"))
                name = ""
            block = [] if block is None else None
        elif block is not None:
            block.append(f"{line}\n")
        elif line.startswith("    $ "):
            found.append(Command(line[6:], number))
        elif line.startswith("    ") and found and found[-1].line:
            last = found[-1]
            if not _is_whole(last.text):
                last.text += f"\n{line[4:]}"
            else:
                last.shown.append(line[4:])
        elif line.strip():
            if exit_code and found:
                found[-1].exit_code, exit_code = exit_code, 0
            if found and found[-1].line:
                found.append(Command("true"))  # an indented line behind a paragraph belongs to no command
            if saved := SAVE.search(line):
                name = saved[1]
            if code := EXIT_CODE.search(line):
                exit_code = int(code[1])
            if line == STOP:
                found.append(Command("stop_daemon"))
    if exit_code:
        found[-1].exit_code = exit_code
    return found


def _is_whole(command: str) -> bool:
    """Whether nothing of a command must follow on the next line."""
    try:
        shlex.split(command)
    except ValueError:  # a quotation is open
        return False
    return not command.endswith("\\")


def run_page(page: str, *, home: Path, environment: Mapping[str, str], addresses: Mapping[str, str]) -> Sequence[str]:
    """Do what the page says in the folder `home`; gives what went otherwise than it says.

    `addresses` are those that the page names, with those that take their place.
    """
    commands = commands_of(page)
    script = [_FUNCTIONS]
    for command in commands:
        text = f"start_daemon {command.text}" if command.is_daemon else command.text
        for named, real in addresses.items():
            text = text.replace(named, real)
        script.append(f"{text}\nprintf '{MARK}%s{MARK}' $?\n")
    done = subprocess.run(
        ["bash"],
        input="".join(script),
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=TIMEOUT,
        check=False,
    )
    output = done.stdout
    for named, real in addresses.items():
        output = output.replace(real, named)
    parts = output.split(MARK)
    problems = []
    for command, printed, code in zip(commands, parts[0::2], parts[1::2], strict=False):
        if int(code) != command.exit_code:
            problems.append(f"line {command.line}: $ {command.text}\nexits with {code} and prints\n{printed}")
        elif command.shown and not _is_shown(printed, command.shown):
            shown = "\n".join(command.shown)
            problems.append(f"line {command.line}: $ {command.text}\nprints\n{printed}\nand the page shows\n{shown}")
    if len(parts) // 2 != len(commands):
        problems.append(f"the shell ended early: {parts[-1]}")
    return problems


def _is_shown(printed: str, shown: Sequence[str]) -> bool:
    """Whether the output is what the page shows of it; empty lines and spaces at the ends of lines do not count."""
    pattern = ""
    for line in shown:
        if line.strip() == ANYTHING:
            pattern += r"(?:.*\n)*"
        else:
            pattern += ".*".join(re.escape(part) for part in line.rstrip().split(ANYTHING)) + "\n"
    text = "".join(f"{line.rstrip()}\n" for line in printed.splitlines() if line.strip())
    return re.fullmatch(pattern, text) is not None
