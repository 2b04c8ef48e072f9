"""`pipeline-engine systemd`: puts the units of the daemon where systemd finds them, and takes them away again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import click

import pipeline_engine
from pipeline_engine.errors import PipelineEngineError

UNITS = ("pipeline-engine.service", "pipeline-engine.socket")
SYSTEM_UNITS = Path("/etc/systemd/system")
CREDENTIALS = Path("/etc/pipeline-engine/credentials")
#: What ProtectHome=yes hides from the service.
HOMES = (Path("/root"), Path("/home"), Path("/run/user"))


class InstallError(PipelineEngineError):
    """The units cannot be installed or removed; the message says why."""


@dataclass(frozen=True, slots=True)
class _Doer:
    """Does what an installation consists of and says so, or only says so."""

    for_user: bool
    dry_run: bool

    @property
    def folder(self) -> Path:
        if not self.for_user:
            return SYSTEM_UNITS
        base = os.environ.get("XDG_CONFIG_HOME", "")
        return (Path(base) if os.path.isabs(base) else Path.home() / ".config") / "systemd" / "user"  # noqa: PTH117

    def make_folder(self, folder: Path, mode: int) -> None:
        if folder.is_dir():
            return
        self._say(f"make {folder}")
        if not self.dry_run:
            with _told(folder, "written"):
                folder.mkdir(mode=mode, parents=True)

    def write(self, file: Path, text: str) -> None:
        self._say(f"write {file}")
        if self.dry_run:
            click.echo(text)
        else:
            with _told(file, "written"):
                file.write_text(text, encoding="utf-8")

    def remove(self, file: Path) -> None:
        if file.exists():
            self._say(f"remove {file}")
            if not self.dry_run:
                with _told(file, "removed"):
                    file.unlink()

    def systemctl(self, *arguments: str, may_fail: bool = False) -> None:
        command = ["systemctl", *(["--user"] if self.for_user else []), *arguments]
        self._say(f"run {' '.join(command)}")
        if self.dry_run:
            return
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        except OSError as exc:
            raise InstallError(f"systemctl cannot be run: {exc.strerror}") from exc
        if done.returncode and not may_fail:
            raise InstallError(f"{' '.join(command)} failed: {done.stderr.strip()}")

    def _say(self, what: str) -> None:
        click.echo(f"would {what}" if self.dry_run else what)


@contextmanager
def _told(path: Path, participle: str) -> Iterator[None]:
    """An error of the file system in this block is told with the path."""
    try:
        yield
    except OSError as exc:
        raise InstallError(f"{path} cannot be {participle}: {exc.strerror}") from exc


@click.group()
def command() -> None:
    """Install or remove the units for systemd."""


@command.command()
@click.option("--user", "for_user", is_flag=True, help="For you alone; needs no privileges.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
def install(for_user: bool, dry_run: bool) -> None:
    """Write the units and have systemd listen; the first connection starts the daemon."""
    doer = _Doer(for_user, dry_run)
    start = exec_start(sys.executable)
    if not for_user:
        check_visible([Path(sys.executable), Path(sys.executable).resolve(), Path(pipeline_engine.__file__)])
    doer.make_folder(doer.folder, 0o755)
    if not for_user:
        doer.make_folder(CREDENTIALS.parent, 0o755)
        doer.make_folder(CREDENTIALS, 0o700)
    for name, text in unit_texts(start, for_user=for_user):
        doer.write(doer.folder / name, text)
    doer.systemctl("daemon-reload")
    doer.systemctl("enable", "--now", "pipeline-engine.socket")
    doer.systemctl("enable", "pipeline-engine.service")


@command.command()
@click.option("--user", "for_user", is_flag=True, help="What was installed with --user.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
def uninstall(for_user: bool, dry_run: bool) -> None:
    """Stop the daemon and remove the units. Its configuration and its state stay."""
    doer = _Doer(for_user, dry_run)
    doer.systemctl("disable", "--now", *UNITS, may_fail=True)
    for name in UNITS:
        doer.remove(doer.folder / name)
    doer.systemctl("daemon-reload")


def exec_start(executable: str) -> str:
    """The command line of the daemon: the script beside the interpreter, if there is one."""
    script = Path(executable).with_name("pipeline-engine")
    words = [str(script), "serve"] if script.exists() else [executable, "-P", "-m", "pipeline_engine", "serve"]
    # systemd splits at spaces, and takes % and $ for its own.
    return " ".join('"' + word.replace("%", "%%").replace("$", "$$") + '"' for word in words)


def check_visible(paths: Sequence[Path]) -> None:
    """Raises InstallError when the service, which sees no home directories, could not see one of the paths."""
    for path in paths:
        if any(path.is_relative_to(home) for home in HOMES):
            raise InstallError(
                f"{path} is in a home directory, which the service does not see. Install Pipeline Engine elsewhere, as"
                " in: /usr/bin/python3 -m venv /opt/pipeline-engine; or use: pipeline-engine systemd install --user"
            )


def unit_texts(start: str, *, for_user: bool) -> Iterator[tuple[str, str]]:
    """The name and the text of each unit."""
    folder = files("pipeline_engine") / "units"
    for name in UNITS:
        text = (folder / "user" / name if for_user else folder / name).read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        yield name, "".join(f"ExecStart={start}\n" if line.startswith("ExecStart=") else line for line in lines)
