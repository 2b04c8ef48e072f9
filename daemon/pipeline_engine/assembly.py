"""Puts an engine together from a configuration."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import trio

from pipeline_engine.admission import Admission
from pipeline_engine.catalog import Catalog
from pipeline_engine.config import Config
from pipeline_engine.definitions import DefinitionChecker, LoadedDirectory, load_directories
from pipeline_engine.engine import Engine, EngineLimits
from pipeline_engine.pipelines import Pipelines, RegisteredPipeline
from pipeline_engine.providers.leftovers import Leftovers
from pipeline_engine.providers.local_tool import LocalToolProvider
from pipeline_engine.providers.process import EndGrace
from pipeline_engine.providers.registry import ProviderRegistry, open_registry
from pipeline_engine.redaction import Redactor
from pipeline_engine.renderer import Renderer
from pipeline_engine.retention import Retention, RetentionRules
from pipeline_engine.steps.context import Services
from pipeline_engine.steps.handlers import Handlers
from pipeline_engine.store.access import StoreAccess
from pipeline_engine.store.age_clock import AgeClock, open_age_clock
from pipeline_engine.store.artifacts import ArtifactFiles
from pipeline_engine.store.base import Store
from pipeline_engine.store.lock import hold_directory
from pipeline_engine.store.sqlite import open_sqlite_store
from pipeline_engine.store.writer import StoreWriter
from pipeline_engine.templates import Templates
from pipeline_engine.tracing import NO_TRACER, Tracer
from pipeline_engine.worker_processes import open_worker_processes

WORKER_THREADS = min(8, (os.cpu_count() or 1) + 2)  # for transforms, plain handlers and artifacts
READ_THREADS = 4  # that read the store at the same time


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalEngine:
    """An engine that runs in this process, and what it was put together from."""

    engine: Engine
    catalog: Catalog
    registry: ProviderRegistry
    checker: DefinitionChecker
    artifacts: ArtifactFiles
    access: StoreAccess
    writer: StoreWriter
    #: Ends what tools and model servers run at once, now and from now on.
    kill_children: Callable[[], None]
    #: Hides the files and values of the secrets in a configuration that is about to come into force.
    hide_secrets: Callable[[Config], None]
    #: Brings the limits of jobs, the handlers and the rules of retention of a configuration into force.
    use_settings: Callable[[Config], None]


def file_checker(config: Config) -> DefinitionChecker:
    """Checks definitions against the configured profiles and handlers, without an engine."""
    return DefinitionChecker(
        templates=Templates(fuel=config.limits.template_fuel),
        profiles=config.providers.get,
        profile_ids=config.providers.keys,
        handlers=Handlers(config.handlers).known,
    )


def configured_pipelines(
    config: Config, checker: DefinitionChecker
) -> tuple[list[RegisteredPipeline], LoadedDirectory]:
    """The pipelines of the environment and of the files, and what the directories held, bad files included."""
    loaded = load_directories(config.pipelines_dirs, checker=checker)
    pipelines = [RegisteredPipeline(definition, "environment") for definition in config.pipelines]
    pipelines += [RegisteredPipeline(one.definition, str(one.file)) for one in loaded.definitions.values()]
    return pipelines, loaded


def engine_limits(config: Config) -> EngineLimits:
    wanted = config.limits
    return EngineLimits(
        max_running_jobs=wanted.max_running_jobs,
        max_queued_jobs=wanted.max_queued_jobs,
        max_restarts=wanted.max_restarts,
        max_store_bytes=wanted.max_store_bytes,
    )


def retention_rules(config: Config) -> RetentionRules:
    wanted = config.store.retention
    return RetentionRules(
        max_age=timedelta(days=wanted.max_age_days),
        chunk_age=timedelta(days=wanted.chunk_age_days),
        max_jobs=wanted.max_jobs,
        max_bytes=wanted.max_bytes,
    )


def profile_origins(config: Config) -> dict[str, str]:
    """`FILE:LINE` of each profile that a configuration file defines, by its id."""
    places = {profile_id: config.origins.get(f"providers.{profile_id}", "default") for profile_id in config.providers}
    return {
        profile_id: place
        for profile_id, place in places.items()
        if place != "default" and not place.startswith("environment")
    }


@asynccontextmanager
async def open_local_engine(
    config: Config,
    *,
    data_dir: Path,
    environ: Mapping[str, str],
    grace_s: float = 0,
    redactor: Redactor | None = None,
) -> AsyncIterator[LocalEngine]:
    """An engine on the data directory, which this process holds while the block runs.

    `environ` is what local tools get PATH, HOME and LANG from; `redactor` hears of all secrets. Raises DataDirectoryInUseError and StoreError.
    """
    with hold_directory(data_dir):
        store = open_sqlite_store(data_dir / "engine.db", durability=config.store.durability.value)
        try:
            async with open_engine(
                config,
                store=store,
                artifacts=ArtifactFiles(data_dir / "artifacts"),
                clock=open_age_clock(data_dir / "clock.json", newest=store.last_finished_at()),
                environ=environ,
                grace_s=grace_s,
                redactor=redactor,
            ) as local:
                yield local
        finally:
            store.close()


@asynccontextmanager
async def open_engine(
    config: Config,
    *,
    store: Store,
    artifacts: ArtifactFiles,
    environ: Mapping[str, str],
    clock: AgeClock | None = None,
    grace_s: float = 0,
    redactor: Redactor | None = None,
) -> AsyncIterator[LocalEngine]:
    """An engine on a store that somebody else closes."""
    clock = clock or AgeClock()
    workers = trio.CapacityLimiter(WORKER_THREADS)
    templates = Templates(fuel=config.limits.template_fuel)
    access = StoreAccess(store, threads=READ_THREADS)
    writer = StoreWriter(store=store)
    redactor = redactor or Redactor()
    leftovers = Leftovers()
    local_tool = LocalToolProvider(environment=environ, limiter=workers, leftovers=leftovers)
    server_end_grace = EndGrace()

    def hide_secrets(config: Config) -> None:
        # What held a key once stays hidden: somebody may still use it.
        local_tool.hide([config.data_dir, *config.files, *config.private_files])
        redactor.add(config.api_key)
        for proxy in config.proxies.values():
            redactor.add_address(proxy)

    hide_secrets(config)
    proxies = {name.removesuffix("_proxy"): value for name, value in config.proxies.items()}
    async with (
        aclosing(leftovers),
        # Apart, so that checks which take long keep nobody's renderings waiting.
        open_worker_processes() as renderings,
        open_worker_processes() as checks,
        _open_tracer(config, environ=environ, redactor=redactor) as tracer,
        open_registry(
            config.providers.values(),
            local_tool=local_tool,
            proxies=proxies,
            environ=environ,
            limiter=workers,
            server_end_grace=server_end_grace,
            redactor=redactor,
            tracer=tracer,
        ) as registry,
    ):
        services = Services(
            renderer=Renderer(templates, processes=renderings),
            processes=checks,
            registry=registry,
            handlers=Handlers(config.handlers),
            artifacts=artifacts,
            workers=workers,
            max_items=config.limits.max_items,
            tracer=tracer,
            redactor=redactor,
        )

        def is_handler(name: str) -> bool:
            return services.handlers.known(name)  # of the services in force: a reload brings others

        checker = DefinitionChecker(
            templates=templates, profiles=registry.get, profile_ids=registry.ids, handlers=is_handler
        )
        pipelines = Pipelines(configured_pipelines(config, checker)[0])
        catalog = Catalog(pipelines=pipelines, registry=registry, checker=checker, access=access, writer=writer)
        catalog.use_configuration(
            profiles=config.providers.values(), origins=profile_origins(config), pipelines=pipelines.all()
        )
        await catalog.load()
        engine = Engine(
            access=access,
            writer=writer,
            services=services,
            admission=Admission(pipelines=pipelines, checker=checker, processes=checks),
            limits=engine_limits(config),
            clock=clock,
            limit_tool_grace=local_tool.end_grace.limit,
        )
        new_retention = partial(
            Retention, engine=engine, access=access, writer=writer, artifacts=artifacts, clock=clock
        )
        keeper = _RetentionKeeper(retention_rules(config), new_retention)

        def kill_children() -> None:
            local_tool.end_grace.limit(0)
            server_end_grace.limit(0)

        def use_settings(wanted: Config) -> None:
            nonlocal config, services
            handlers = services.handlers if wanted.handlers == config.handlers else Handlers(wanted.handlers)
            services = dataclasses.replace(services, handlers=handlers, max_items=wanted.limits.max_items)
            config = wanted
            templates.fuel = config.limits.template_fuel
            engine.use_settings(limits=engine_limits(config), services=services)
            keeper.use_rules(retention_rules(config))

        async with running(engine, writer, grace_s=grace_s), trio.open_nursery() as housekeeping:
            housekeeping.start_soon(keeper.run)
            yield LocalEngine(
                engine=engine,
                catalog=catalog,
                registry=registry,
                checker=checker,
                artifacts=artifacts,
                access=access,
                writer=writer,
                kill_children=kill_children,
                hide_secrets=hide_secrets,
                use_settings=use_settings,
            )
            housekeeping.cancel_scope.cancel()


class _RetentionKeeper:
    """Runs retention by the rules in force; new rules begin with a new one."""

    def __init__(self, rules: RetentionRules, new_retention: Callable[..., Retention]) -> None:
        self._rules = rules
        self._new_retention = new_retention
        self._changed = trio.Event()

    def use_rules(self, rules: RetentionRules) -> None:
        if rules != self._rules:
            self._rules = rules
            self._changed.set()

    async def run(self) -> None:
        while True:
            self._changed = trio.Event()
            async with trio.open_nursery() as keeping:
                # Cancelled at any point it leaves nothing half done that the next one does not find.
                keeping.start_soon(self._new_retention(rules=self._rules).run)
                await self._changed.wait()
                keeping.cancel_scope.cancel()


@asynccontextmanager
async def _open_tracer(config: Config, *, environ: Mapping[str, str], redactor: Redactor) -> AsyncIterator[Tracer]:
    if not config.tracing.enabled:
        yield NO_TRACER
        return
    from pipeline_engine.otel import open_otel_tracer  # noqa: PLC0415 - of an extra, and slow to import

    async with open_otel_tracer(config.tracing, environ=environ, redactor=redactor) as tracer:
        yield tracer


@asynccontextmanager
async def running(engine: Engine, writer: StoreWriter, *, grace_s: float = 0) -> AsyncIterator[None]:
    """The engine and the writer of its store run as long as the block.

    At the end running jobs have `grace_s` seconds to finish; the others go on after the next start.
    """
    async with trio.open_nursery() as writing:
        await writing.start(writer.run)
        try:
            async with trio.open_nursery() as jobs:
                await jobs.start(engine.run)
                try:
                    yield
                finally:
                    # Shielded: the jobs' own tasks end when they are told to, and drain bounds how long that takes.
                    with trio.CancelScope(shield=True):
                        await engine.drain(grace_s)
        finally:
            writer.close()
