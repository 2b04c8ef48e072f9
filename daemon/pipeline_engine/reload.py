"""Brings a changed configuration and changed definitions into force while the daemon runs."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from pipeline_engine.assembly import LocalEngine, configured_pipelines, profile_origins
from pipeline_engine.config import Config, LogLevel
from pipeline_engine.definitions import LoadedDefinition, LoadedDirectory
from pipeline_engine.errors import InvalidRequestError, Problem
from pipeline_engine.file_watch import FileWatch
from pipeline_engine.models import ProviderProfile
from pipeline_engine.pipelines import RegisteredPipeline
from pipeline_engine.watched_paths import WatchedNames, find_watched

log = logging.getLogger(__name__)

WATCH_ATTEMPTS = 3  # something may change between looking what to watch and watching it

_RELOADED_LIMITS = (
    "max_items", "max_queued_jobs", "max_restarts", "max_running_jobs", "max_store_bytes", "template_fuel",
)  # fmt: skip

_FileStates = dict[Path, tuple[int, int, int] | None]  # None for a file that cannot be looked at


class Reloader:
    """What the configuration and the definition files say now, as far as they are good.

    A bad file keeps what it said last in force, and the log says why, once.
    """

    def __init__(
        self,
        *,
        config: Config,
        local: LocalEngine,
        load: Callable[[], Config],
        use_log_level: Callable[[LogLevel], None],
        use_config: Callable[[Config], None],
    ) -> None:
        self._config = config  # in force
        self._read = config  # as it was read last: what takes a restart is in it, too
        self._local = local
        self._load = load
        self._use_log_level = use_log_level
        self._use_config = use_config
        self._definitions: dict[str, LoadedDefinition] = {}
        self._told: dict[Path, str] = {}
        self._complaint = ""  # of the configuration, as the log has it
        self._complaint_states: _FileStates = {}  # of its files, when that was told last
        self._watch: FileWatch | None = None
        self._unwatched: list[Path] = []
        self._lock = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)

    async def reload(self, *, asked: bool = False) -> bool:
        """Read the configuration and the definitions again, and use what is good of them.

        False if the configuration stays as it was; why is told again if somebody has `asked` for this, or has changed
        one of its files since.
        """
        read: Config | None = None
        async with self._lock:
            # What is watched before it is read has no change that is missed.
            await self._watch_files()
            files = [*self._config.files, *self._config.missing_files]
            # Before they are read: a change in between is then told of once more, and not never.
            states = await trio.to_thread.run_sync(_states_of, files, limiter=self._limiter)
            try:
                read = await trio.to_thread.run_sync(self._load, limiter=self._limiter)
                self._refuse_missing(read)
                self._take_over(read)
                self._tell_of_configuration("")
                await self._watch_files()
            except InvalidRequestError as exc:
                # Somebody may have changed another file than the one that keeps it from being used.
                self._tell_of_configuration(exc.message, again=asked or states != self._complaint_states)
                self._complaint_states = states
            except Exception as exc:
                # A fault of ours: whatever a file holds, it does not end a daemon that runs. So below.
                log.exception("the configuration stays as it was: %s: %s", type(exc).__name__, exc)  # noqa: TRY401
            await self._use_files()
            return self._read is read

    async def use_definitions(self) -> None:
        """Read the definitions and use what is good of them."""
        async with self._lock:
            await self._use_files()

    @asynccontextmanager
    async def watching(self, watch: FileWatch) -> AsyncIterator[None]:
        """While in the block, `watch` looks at what was read, and after each reload at what was read then."""
        self._watch = watch
        try:
            async with self._lock:
                await self._watch_files()
            yield
        finally:
            self._watch = None

    async def _watch_files(self) -> None:
        try:
            await self._watch_paths()
        except Exception as exc:
            log.exception("what is watched for changes stays as it was: %s: %s", type(exc).__name__, exc)  # noqa: TRY401

    async def _watch_paths(self) -> None:
        config = self._config

        def find() -> dict[Path, WatchedNames]:
            return find_watched([*config.files, *config.missing_files], config.pipelines_dirs)

        wanted: dict[Path, WatchedNames] = {}
        failed: list[Path] = []
        for _ in range(WATCH_ATTEMPTS):
            if self._watch is None:
                return
            before, wanted = wanted, await trio.to_thread.run_sync(find, limiter=self._limiter)
            if wanted == before or self._watch is None:
                break
            failed = self._watch.watch(wanted)
        for directory in failed:
            if directory not in self._unwatched:
                log.warning("%s cannot be watched for changes; send SIGHUP after one", directory)
        self._unwatched = failed

    def _refuse_missing(self, read: Config) -> None:
        """A file that was in force and is gone counts as a bad one: it may be on its way, or its disk may."""
        problem = Problem("", "is gone; to take its settings away, put an empty file in its place or restart")
        for file in self._config.files:
            if file in read.missing_files:
                raise InvalidRequestError([problem], source=str(file))

    def _tell_of_configuration(self, complaint: str, *, again: bool = False) -> None:
        if complaint and (again or complaint != self._complaint):
            log.error("the configuration stays as it was: %s", complaint)
        elif self._complaint and not complaint:
            log.info("the configuration can be used again")
        self._complaint = complaint

    def _take_over(self, read: Config) -> None:
        self._local.hide_secrets(read)
        config = _in_force(self._config, read)
        # What needs a restart is told again when it changes again, and not at every reload.
        waiting = sorted(_differences(read, config) & _differences(read, self._read))
        if waiting:
            log.warning("changed, but in force only after a restart: %s", ", ".join(waiting))
        if config.log_level is not self._config.log_level:
            self._use_log_level(config.log_level)
        for warning in config.warnings:
            if warning not in self._config.warnings:
                log.warning("%s", warning)
        self._local.use_settings(config)
        self._use_config(config)
        self._config, self._read = config, read

    async def _use_files(self) -> None:
        try:
            await self._use_good_files()
        except Exception as exc:
            log.exception("the definitions stay as they were: %s: %s", type(exc).__name__, exc)  # noqa: TRY401

    async def _use_good_files(self) -> None:
        config, local = self._config, self._local

        origins = profile_origins(config)

        def profile(profile_id: str) -> ProviderProfile | None:
            # As it will be, not as it is: this very reload may remove it.
            put = None if profile_id in origins else local.catalog.put_profile_of(profile_id)
            return put or config.providers.get(profile_id)

        checker = dataclasses.replace(local.checker, profiles=profile)
        pipelines, loaded = await trio.to_thread.run_sync(configured_pipelines, config, checker, limiter=self._limiter)
        kept = self._kept(loaded)
        self._definitions = {**loaded.definitions, **kept}
        local.catalog.use_configuration(
            profiles=config.providers.values(),
            origins=origins,
            pipelines=[*pipelines, *(RegisteredPipeline(one.definition, str(one.file)) for one in kept.values())],
            broken_files=[error.message.partition("\n")[0] for error in loaded.errors.values()],
        )
        self._tell(loaded)

    def _kept(self, loaded: LoadedDirectory) -> dict[str, LoadedDefinition]:
        """The last good definitions of files that are bad now."""
        return {
            pipeline_type: one
            for pipeline_type, one in self._definitions.items()
            if pipeline_type not in loaded.definitions
            and not loaded.errors.keys().isdisjoint({one.file, one.file.parent})
        }

    def _tell(self, loaded: LoadedDirectory) -> None:
        now = {file: error.message for file, error in loaded.errors.items()}
        for file, message in now.items():
            if self._told.get(file) != message:
                log.error("%s", message)
        for file in {one.file for one in loaded.definitions.values()} & self._told.keys():
            log.info("%s can be used again", file)
        self._told = now


def _states_of(files: Iterable[Path]) -> _FileStates:
    """What is another one after a file has changed."""
    states: _FileStates = {}
    for file in files:
        try:
            found = file.stat()
        except OSError:
            states[file] = None
        else:
            states[file] = (found.st_ino, found.st_size, found.st_mtime_ns)
    return states


def _in_force(before: Config, read: Config) -> Config:
    """What holds when a configuration has been read; what is not named here takes a restart."""
    limits = {name: getattr(read.limits, name) for name in _RELOADED_LIMITS}
    return dataclasses.replace(
        before,
        log_level=read.log_level,
        pipelines_dirs=read.pipelines_dirs,
        limits=msgspec.structs.replace(before.limits, **limits),
        store=msgspec.structs.replace(before.store, retention=read.store.retention),
        providers=read.providers,
        handlers=read.handlers,
        pipelines=read.pipelines,
        origins=read.origins,
        files=read.files,
        missing_files=read.missing_files,
        private_files=read.private_files,
        warnings=read.warnings,
    )


def _differences(one: Config, other: Config) -> set[str]:
    """The settings that differ, by their dotted keys."""
    shown, others = one.settings(), other.settings()
    differences = {key for key in shown if shown[key] != others[key]}
    return differences | ({"api_key"} if one.api_key != other.api_key else set())


async def reload_on_changes(
    reloader: Reloader, watch: FileWatch, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Reload whenever a file of the configuration or of the definitions changes; started() when they are watched."""
    async with reloader.watching(watch):
        task_status.started()
        while True:
            await watch.changed()
            await reloader.reload()
