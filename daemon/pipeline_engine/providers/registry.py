"""The profiles with what belongs to each: its provider, its connections and its limits."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import msgspec
import trio

from pipeline_engine.errors import ErrorCode, ProviderError, StepError
from pipeline_engine.models import ProviderKind, ProviderOverride, ProviderProfile
from pipeline_engine.providers.addresses import origin_of, with_port
from pipeline_engine.providers.base import Chunk, Completion, Operation, Provider, ProviderCall, Target
from pipeline_engine.providers.call_spans import describe_call, describe_completion
from pipeline_engine.providers.call_stats import CallStats
from pipeline_engine.providers.failures import redact
from pipeline_engine.providers.hints import add_hint
from pipeline_engine.providers.image import ImageProvider
from pipeline_engine.providers.limits import Permit, ProfileLimits
from pipeline_engine.providers.managed import ModelServer, ModelServers, open_model_servers
from pipeline_engine.providers.model_lists import fetch_models
from pipeline_engine.providers.ollama import OllamaProvider
from pipeline_engine.providers.openai import OpenAiProvider
from pipeline_engine.providers.process import EndGrace
from pipeline_engine.providers.server_process import open_server_process, server_settings
from pipeline_engine.providers.targets import limits_of, resolve
from pipeline_engine.providers.transport import HttpClient, Network
from pipeline_engine.providers.watch import Batch, open_watched
from pipeline_engine.redaction import Redactor
from pipeline_engine.tracing import NO_TRACER, Tracer

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT = 5.0  # seconds
CHARACTERS_PER_TOKEN = 4  # the usual rule of thumb, until the provider has counted

_METRICS = ("provider_call_count", "provider_call_latency", "provider_call_errors", "provider_chunk_count")
_SUPPORTED = {
    ProviderKind.OPENAI: {Operation.CHAT, Operation.EMBED, Operation.IMAGE},
    ProviderKind.OLLAMA: {Operation.CHAT, Operation.EMBED},
    ProviderKind.IMAGE: {Operation.IMAGE},
    ProviderKind.LOCAL_TOOL: {Operation.TOOL},
}


@dataclass(eq=False, slots=True)
class _Entry:
    """A profile as it is at one time. A replaced one lives on until its last call has ended."""

    profile: ProviderProfile
    client: HttpClient
    providers: Mapping[Operation, Provider]
    server: ModelServer | None = None
    calls: int = 0
    replaced: bool = False


class ProviderRegistry:
    """Profiles by id; runs their calls under their limits and timeouts. Use `open_registry`."""

    def __init__(
        self,
        profiles: Iterable[ProviderProfile],
        *,
        local_tool: Provider,
        network: Network,
        servers: ModelServers,
        redactor: Redactor,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._local_tool = local_tool
        self._tracer = tracer
        self._network = network
        self._servers = servers
        self._redactor = redactor
        self._entries: dict[str, _Entry] = {}
        self._limits: dict[str, ProfileLimits] = {}  # of profiles that were used
        self.stats = CallStats()
        self._metrics: dict[str, Counter[ProviderKind]] = {name: Counter() for name in _METRICS}
        for profile in profiles:
            self.put(profile)

    def get(self, profile_id: str) -> ProviderProfile | None:
        entry = self._entries.get(profile_id)
        return None if entry is None else entry.profile

    def ids(self) -> list[str]:
        return sorted(self._entries)

    def profiles(self) -> list[ProviderProfile]:
        """All profiles, in the order of their ids."""
        return [self._entries[profile_id].profile for profile_id in sorted(self._entries)]

    def put(self, profile: ProviderProfile) -> None:
        """Add or replace a profile: new calls see it, calls under way finish with what they began with."""
        self._redactor.add_profile(profile)
        client = HttpClient(network=self._network)
        settings = server_settings(profile)
        # Before the old profile lets go of its server: if both have the same one, it goes on.
        server = None if settings is None else self._servers.acquire(settings)
        self._retire(profile.id)
        self._entries[profile.id] = _Entry(profile, client, self._providers(profile.kind, client), server)
        if profile.id in self._limits:
            self._limits[profile.id].change(limits_of(profile.extra))

    def remove(self, profile_id: str) -> None:
        """Remove a profile: calls under way finish, all others fail. Its limits are kept as long as they hold calls, for
        a profile that comes in its place.
        """
        self._retire(profile_id)
        if profile_id in self._limits:
            self._limits[profile_id].lift()  # what waits hears of it now
        self._limits = {
            key: limits for key, limits in self._limits.items() if key in self._entries or not limits.is_idle
        }

    def resolve(self, profile_id: str, override: ProviderOverride | None = None) -> Target:
        """Where a call of this profile goes. Raises ProviderError if there is no such profile."""
        target = resolve(self._entry(profile_id).profile, override)
        self._redactor.add(*target.headers.values())
        return target

    def metrics(self) -> dict[str, dict[str, int]]:
        """Name → kind → count since the start; latency is in milliseconds, and every kind is there."""
        return {name: {kind.value: counts[kind] for kind in ProviderKind} for name, counts in self._metrics.items()}

    def count_retry(self, profile_id: str) -> None:
        if (profile := self.get(profile_id)) is not None:
            self.stats.retries[profile.kind] += 1

    def limited(self) -> dict[str, tuple[int, int]]:
        """Of each profile that was used: how many calls run, and how many wait for its limits."""
        return {
            profile_id: (limits.in_flight, limits.waiting)
            for profile_id, limits in sorted(self._limits.items())
            if profile_id in self._entries or limits.in_flight
        }

    def concurrency(self) -> dict[str, int]:
        """Of each profile that was used and has a limit: how many calls may run at once now, but for overrides."""
        return {
            profile_id: int(limits.own.concurrency)
            for profile_id, limits in sorted(self._limits.items())
            if profile_id in self._entries and math.isfinite(limits.own.concurrency)
        }

    @asynccontextmanager
    async def stream(
        self, call: ProviderCall, *, job_id: str, begin: Callable[[ProviderCall], Awaitable[ProviderCall]] | None = None
    ) -> AsyncIterator[AsyncIterator[list[Chunk | Completion]]]:
        """Run a call as soon as the limits allow, in fair turns with other jobs; waiting for them costs no timeout.

        `begin` is awaited once they do, before anything of the call is done: it gives the call as it is to be made by now.
        The iterator yields what arrived together, the Completion last. Raises ProviderError (StepError for tools).
        """
        self._provider_of(call)  # there is no use in waiting for what cannot be done
        limits, override = self._limits_of(call.target.profile_id), call.target.limits
        async with limits.permit(job_id=job_id, tokens=_estimated_tokens(call), override=override) as permit:
            if begin is not None:
                call = await begin(call)
            # The profile may have been replaced meanwhile.
            entry, provider = self._provider_of(call)
            target = call.target
            with self._calling(entry, target):
                async with self._server_up(target, entry) as reached:
                    call = call if reached is target else msgspec.structs.replace(call, target=reached)
                    with self._counted(call, permit) as note:
                        async with open_watched(provider, call, note=note) as batches:
                            yield batches

    @contextmanager
    def _calling(self, entry: _Entry, target: Target) -> Iterator[None]:
        """While in the block, the entry keeps its connections; an error gets its hint, and loses all secrets."""
        entry.calls += 1
        try:
            yield
        except StepError as exc:
            add_hint(exc, target, entry.profile)
            # Servers and tools like to repeat what they were given.
            self._redactor.redact_error(exc)
            raise
        finally:
            entry.calls -= 1
            self._close_if_unused(entry)

    @contextmanager
    def _counted(self, call: ProviderCall, permit: Permit) -> Iterator[Callable[[Batch], None]]:
        """Counts a call and how it ends, for the metrics, the limits and the trace; gives what takes note of a batch."""
        kind = call.target.kind
        chunks = self._metrics["provider_chunk_count"]
        is_tool = call.operation is Operation.TOOL
        with_content = self._tracer.wants_content
        answer: list[Chunk] | None = [] if with_content else None
        first_after: float | None = None

        def note(batch: Batch) -> None:
            nonlocal first_after
            completion = batch[-1] if isinstance(batch[-1], Completion) else None
            if count := len(batch) - (completion is not None):
                chunks[kind] += count
                if first_after is None:
                    first_after = trio.current_time() - began
                    self.stats.first_token[kind].add(first_after)
                if answer is not None:
                    answer.extend(part for part in batch if isinstance(part, Chunk))
            if completion is not None:
                permit.succeeded = True
                span.add(partial(describe_completion, completion, answer, is_tool=is_tool))
                if completion.usage is not None:
                    permit.tokens_used = completion.usage.prompt_tokens + completion.usage.completion_tokens
                    self.stats.add_usage(kind, completion.usage)

        began = trio.current_time()
        self._metrics["provider_call_count"][kind] += 1
        with self._tracer.span(lambda: describe_call(call, with_content=with_content)) as span:
            try:
                yield note
            except StepError as exc:
                self._metrics["provider_call_errors"][kind] += 1
                if isinstance(exc, ProviderError):
                    permit.rate_limited = exc.retryable and exc.code is ErrorCode.PROVIDER_RATE_LIMITED
                raise
            finally:
                self._metrics["provider_call_latency"][kind] += round((trio.current_time() - began) * 1000)
                if first_after is not None:
                    span.add(lambda: {"gen_ai.response.time_to_first_chunk": first_after})

    async def list_models(self, profile_id: str) -> list[str]:
        """The models that the profile's server offers. Raises ProviderError."""
        entry = self._entry(profile_id)
        target = resolve(entry.profile)
        with self._calling(entry, target):
            async with self._server_up(target, entry) as reached:
                return await fetch_models(entry.client, reached)

    def _server_up(self, target: Target, entry: _Entry) -> AbstractAsyncContextManager[Target]:
        """While in the block, the profile's own server is up if the target is of it; gives the target with its port."""
        # A step may send its calls to another origin.
        if entry.server is None or origin_of(target.base_uri) != origin_of(resolve(entry.profile).base_uri):
            return nullcontext(target)
        return self._using(entry.server, target)

    @asynccontextmanager
    async def _using(self, server: ModelServer, target: Target) -> AsyncIterator[Target]:
        try:
            async with server.in_use() as port:
                yield (
                    target
                    if port is None
                    else msgspec.structs.replace(target, base_uri=with_port(target.base_uri, port))
                )
        except ProviderError as exc:
            if "stderr" in exc.details:  # some servers print the key that they are given
                exc.message = redact(exc.message, target)
                exc.details["stderr"] = redact(exc.details["stderr"], target)
            raise

    async def aclose(self) -> None:
        """Close all connections; no call may be under way."""
        for profile_id in list(self._entries):
            self._retire(profile_id)
        await self._network.aclose()

    def _entry(self, profile_id: str) -> _Entry:
        if profile_id not in self._entries:
            raise ProviderError(ErrorCode.PROVIDER_ERROR, f"there is no provider profile {profile_id!r}")
        return self._entries[profile_id]

    def _provider_of(self, call: ProviderCall) -> tuple[_Entry, Provider]:
        """Who does the call as things are now. Raises ProviderError."""
        profile_id = call.target.profile_id
        entry = self._entry(profile_id)
        provider = entry.providers.get(call.operation)
        if provider is None:
            message = f"provider {profile_id!r} is of the kind {entry.profile.kind} and cannot do: {call.operation}"
            raise ProviderError(ErrorCode.PROVIDER_ERROR, message)
        return entry, provider

    def _limits_of(self, profile_id: str) -> ProfileLimits:
        limits = self._limits.get(profile_id)
        if limits is None:
            limits = self._limits[profile_id] = ProfileLimits(limits_of(self._entry(profile_id).profile.extra))
        return limits

    def _retire(self, profile_id: str) -> None:
        entry = self._entries.pop(profile_id, None)
        if entry is not None:
            entry.replaced = True
            self._close_if_unused(entry)
            if entry.server is not None:
                self._servers.release(entry.server)

    def _close_if_unused(self, entry: _Entry) -> None:
        if entry.replaced and not entry.calls:
            entry.client.close()

    def _providers(self, kind: ProviderKind, client: HttpClient) -> Mapping[Operation, Provider]:
        # An OpenAI server makes images too; the image provider speaks that part of its API.
        image = ImageProvider(client=client)
        chat: Provider = OllamaProvider(client=client) if kind is ProviderKind.OLLAMA else OpenAiProvider(client=client)
        all_providers: dict[Operation, Provider] = {
            Operation.CHAT: chat,
            Operation.EMBED: chat,
            Operation.IMAGE: image,
            Operation.TOOL: self._local_tool,
        }
        return {operation: all_providers[operation] for operation in _SUPPORTED[kind]}


@asynccontextmanager
async def open_registry(
    profiles: Iterable[ProviderProfile],
    *,
    local_tool: Provider,
    proxies: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    limiter: trio.CapacityLimiter | None = None,
    server_end_grace: EndGrace | None = None,
    redactor: Redactor | None = None,
    tracer: Tracer = NO_TRACER,
) -> AsyncIterator[ProviderRegistry]:
    """A registry whose connections are closed at the end, and whose model servers are stopped.

    `local_tool` runs the tools; `proxies` has the keys `http`, `https`, `all` and `no`, as the environment has them.
    `environ` is what model servers get PATH, HOME and LANG from; `limiter` bounds the threads that look after them,
    and `server_end_grace` how long they take to end.
    `redactor` hears of all secrets, and takes them out of errors; `tracer` opens a span for each call.
    """
    network = Network(proxies=proxies or {})
    open_server = partial(
        open_server_process, network=network, environ=environ or {}, limiter=limiter, end_grace=server_end_grace
    )
    async with open_model_servers(open_server) as servers:
        registry = ProviderRegistry(
            profiles,
            local_tool=local_tool,
            network=network,
            servers=servers,
            redactor=redactor or Redactor(),
            tracer=tracer,
        )
        try:
            yield registry
        finally:
            with trio.move_on_after(CLOSE_TIMEOUT, shield=True) as scope:
                await registry.aclose()
            if scope.cancelled_caught:
                _log.warning("some provider connections were not closed within %s s", CLOSE_TIMEOUT)


def _estimated_tokens(call: ProviderCall) -> int:
    characters = sum(len(message.content) for message in call.messages) + sum(map(len, call.inputs))
    return characters // CHARACTERS_PER_TOKEN + (call.max_tokens or 0)
