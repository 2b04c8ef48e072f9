"""The composition root: the outermost nursery, with the server, the engine, the signals and the watch over files."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import trio

from pipeline_engine import open_files
from pipeline_engine.api.app import create_app
from pipeline_engine.api.context import Api
from pipeline_engine.api.serving import (
    Guard,
    GuardSettings,
    ServeSettings,
    describe_listener,
    describe_socket,
    host_names,
    open_listeners,
    serve,
)
from pipeline_engine.assembly import LocalEngine, open_local_engine
from pipeline_engine.config import Config
from pipeline_engine.engine import Engine
from pipeline_engine.file_watch import open_file_watch
from pipeline_engine.listen_addresses import Address, TcpAddress
from pipeline_engine.logs import set_log_level
from pipeline_engine.loop_lag import LoopLag
from pipeline_engine.redaction import Redactor
from pipeline_engine.reload import Reloader, reload_on_changes
from pipeline_engine.store.writer import StoreWriter
from pipeline_engine.systemd import Notifier, Supervision

log = logging.getLogger(__name__)

COLLECT_EVERY = 20_000  # container objects more than at the last collection
LAST_ANSWERS_S = 1.5  # what is under way when all jobs have let go may take so long to reach its client
STOP_RESERVE_S = 15.0  # for what comes after the grace: stopping tools, writing what they left, closing the store
FEEDS = 3  # of the watchdog, in each of its intervals


class _Stopping:
    """That the daemon shall stop, and that it shall not wait any longer, for jobs or for what they have started."""

    def __init__(self) -> None:
        self.requested = trio.Event()
        self.patience = trio.CancelScope()
        self._kill_children: Callable[[], None] = lambda: None

    def request(self) -> None:
        """The first time ends the daemon after the grace, the second time at once."""
        if self.requested.is_set():
            self.patience.cancel()
            self._kill_children()
        self.requested.set()

    def use(self, kill_children: Callable[[], None]) -> None:
        self._kill_children = kill_children
        if self.patience.cancel_called:
            kill_children()


async def run_daemon(
    config: Config, *, load: Callable[[], Config], supervision: Supervision, redactor: Redactor
) -> None:
    """Serve until SIGTERM or SIGINT; `load` reads the configuration again.

    `redactor` hears of all secrets, so that the log can be kept free of them.

    Raises ListenError, DataDirectoryInUseError and StoreError, alone or in groups.
    """
    notifier = supervision.notifier
    redactor.add(config.api_key)
    for warning in config.warnings:
        log.warning("%s", warning)
    stopping = _Stopping()
    loop_lag = LoopLag()
    trio.lowlevel.add_instrument(loop_lag)
    api = Api(config=config, use_log_level=set_log_level, loop_lag=loop_lag)
    server_stops, server_stopped = trio.Event(), trio.Event()
    with _open_signals() as signals:
        # The addresses come first: a second daemon that is started by mistake must not wait for a store.
        async with (
            open_listeners(_own_addresses(config, supervision), passed=supervision.passed) as listeners,
            trio.open_nursery() as system,
        ):
            reloads, reload_wishes = trio.open_memory_channel[None](1)
            system.start_soon(_heed_signals, signals, stopping, reloads)
            serving = partial(_serve, api, listeners, stop=server_stops, stopped=server_stopped)
            if not supervision.passed:
                system.start_soon(serving)
            async with open_local_engine(
                config, data_dir=config.data_dir, environ=os.environ, redactor=redactor
            ) as local:
                stopping.use(local.kill_children)
                reloader = Reloader(
                    config=config,
                    local=local,
                    load=load,
                    use_log_level=api.set_log_level,
                    use_config=api.use_config,
                )
                await system.start(_watch_files, reloader)  # before they are read: then no change is missed
                await reloader.use_definitions()
                system.start_soon(_reload_on_request, reloader, reload_wishes, notifier)
                _spare_collector()
                _announce(api, local, listeners, notifier)
                if supervision.passed:
                    # Whose call has started the daemon must not be told that it is starting: until now they waited.
                    system.start_soon(serving)
                if supervision.watchdog_s is not None:
                    system.start_soon(_feed_watchdog, notifier, local.writer, supervision.watchdog_s)
                await stopping.requested.wait()
                notifier.stopping("stopping", within_s=config.limits.shutdown_grace_s + STOP_RESERVE_S)
                await _drain(local.engine, config.limits.shutdown_grace_s, stopping)
                # While the store is still open: those who waited for a job are about to read it.
                server_stops.set()
                await server_stopped.wait()
            system.cancel_scope.cancel()


def _own_addresses(config: Config, supervision: Supervision) -> list[Address]:
    """What is to be listened on besides the sockets that were passed in: those are there instead of the defaults."""
    if not supervision.passed:
        return list(config.addresses)
    given = [describe_socket(sock) for sock in supervision.passed]
    if config.origins["http.addr"] == "default":
        return []
    return [address for address in config.addresses if address not in given]


async def _serve(api: Api, listeners: Sequence[trio.SocketListener], *, stop: trio.Event, stopped: trio.Event) -> None:
    config = api.config
    bound = [address for listener in listeners if isinstance(address := describe_listener(listener), TcpAddress)]
    guard = GuardSettings(
        allowed_hosts=host_names([(address.host, address.port) for address in bound], extra=config.http.allowed_hosts),
        allowed_origins=frozenset(origin.lower().encode() for origin in config.http.allowed_origins),
        api_key=config.api_key,
    )
    settings = ServeSettings(
        max_connections=_max_connections(config),
        max_body_bytes=config.limits.max_body_bytes,
        write_stall_s=config.limits.follower_stall_s,
        grace_s=LAST_ANSWERS_S,
    )
    await serve(Guard(create_app(api), settings=guard), listeners, settings=settings, stop=stop)
    stopped.set()


def _max_connections(config: Config) -> int:
    files = open_files.allow_all()
    wanted, room = config.http.max_connections, open_files.room_for_connections(files)
    if wanted > room:
        words = "at most %d connections instead of http.max_connections = %d: only %d files may be open (ulimit -Hn)"
        log.warning(words, room, wanted, files)
    return min(wanted, room)


def _spare_collector() -> None:
    """Jobs make many objects that reference counts free; looking for cycles among them as often as by default costs
    every tenth of the daemon's time. What was loaded until now stays, and need not be looked at again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY, 20, 50)


def _announce(api: Api, local: LocalEngine, listeners: Sequence[trio.SocketListener], notifier: Notifier) -> None:
    """From here on the daemon is ready: whoever supervises it is told here."""
    api.local = local
    for listener in listeners:
        log.info("listening on %s", describe_listener(listener))
    notifier.ready("running")


@contextmanager
def _open_signals() -> Iterator[AsyncIterator[int]]:
    """The signals that say what to do. A hangup ends the daemon at no time: `main` blocks it until here."""
    heeded = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    for number in heeded:
        # What the receiver has not told when it closes comes once more, to a daemon that has stopped already. Not ignored,
        # which children would inherit, and which would take away a hangup that waits.
        signal.signal(number, lambda *_: None)
    try:
        with trio.open_signal_receiver(*heeded) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
            yield signals
    finally:
        # Other handlers Python takes away while it ends: one more signal would then make that a kill.
        for number in heeded:
            signal.signal(number, signal.SIG_IGN)


async def _heed_signals(
    signals: AsyncIterator[int], stopping: _Stopping, reloads: trio.MemorySendChannel[None]
) -> None:
    async for number in signals:
        if number != signal.SIGHUP:
            stopping.request()
            continue
        with suppress(trio.WouldBlock):  # a reload that has not begun yet will see this change too
            reloads.send_nowait(None)


async def _reload_on_request(reloader: Reloader, requests: trio.MemoryReceiveChannel[None], notifier: Notifier) -> None:
    async for _ in requests:
        notifier.reloading()
        is_good = await reloader.reload(asked=True)
        notifier.ready("running")
        log.info("%s were read again", "the configuration and the definitions" if is_good else "the definitions")


async def _feed_watchdog(notifier: Notifier, writer: StoreWriter, interval_s: float) -> None:
    """Feed it as long as the loop turns and the store answers: a daemon that can do neither is better started anew."""
    while True:
        await writer.prove_progress()
        notifier.keep_alive()
        await trio.sleep(interval_s / FEEDS)


async def _watch_files(reloader: Reloader, *, task_status: trio.TaskStatus[None]) -> None:
    with ExitStack() as stack:
        try:
            watch = stack.enter_context(open_file_watch())
        except OSError as exc:
            log.warning("files are not watched for changes (%s); send SIGHUP after one", exc.strerror)
            task_status.started()
            return
        await reload_on_changes(reloader, watch, task_status=task_status)


async def _drain(engine: Engine, grace_s: float, stopping: _Stopping) -> None:
    known = engine.running_count + engine.queued_count + engine.finished.total()
    if engine.running_count and grace_s:
        waiting = f"waiting up to {grace_s:g} s for {_jobs(engine.running_count)}; a second signal does not wait"
        log.info("stopping: %s", waiting)
    else:
        log.info("stopping")
    with stopping.patience:
        await engine.drain(grace_s)
        await engine.stopped.wait()
    if stopping.patience.cancelled_caught:
        await engine.drain(0)
    await engine.stopped.wait()
    if (left := known - engine.finished.total()) > 0:
        log.info("%s to go on after the next start", _jobs(left))


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
