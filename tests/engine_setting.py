"""An engine for tests: any store, and providers that answer from a script on trio's clock, without sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from pipeline_engine.admission import Admission
from pipeline_engine.assembly import running
from pipeline_engine.decoding import Secret, decode
from pipeline_engine.definitions import DefinitionChecker
from pipeline_engine.documents import parse_document
from pipeline_engine.engine import Engine, EngineLimits
from pipeline_engine.errors import StepError
from pipeline_engine.models import Job, JobId, JobRequest, ProviderExtra, ProviderKind, ProviderProfile, Usage
from pipeline_engine.pipelines import Pipelines, RegisteredPipeline
from pipeline_engine.providers.base import Chunk, Completion, Operation, Provider, ProviderCall
from pipeline_engine.providers.local_tool import LocalToolProvider
from pipeline_engine.providers.managed import ModelServers
from pipeline_engine.providers.registry import ProviderRegistry
from pipeline_engine.providers.transport import HttpClient, Network
from pipeline_engine.redaction import Redactor
from pipeline_engine.renderer import Renderer
from pipeline_engine.steps.context import Services
from pipeline_engine.steps.handlers import Handlers
from pipeline_engine.store.access import StoreAccess
from pipeline_engine.store.age_clock import AgeClock
from pipeline_engine.store.artifacts import ArtifactFiles
from pipeline_engine.store.base import Store
from pipeline_engine.store.memory import MemoryStore
from pipeline_engine.store.writer import StoreWriter
from pipeline_engine.templates import Templates
from pipeline_engine.tracing import NO_TRACER, Tracer
from pipeline_engine.worker_processes import WorkerError, WorkerProcesses

Json = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Script:
    """One answer: its tokens, the pauses (seconds) before the first and each, and an error after them."""

    tokens: Sequence[str] = ("ok",)
    first: float = 0.0
    delay: float = 0.0
    error: StepError | None = None
    echo: bool = False
    finish_reason: str = "stop"
    usage: Usage | None = field(default_factory=lambda: Usage(prompt_tokens=1, completion_tokens=2))


class ScriptedProvider:
    """Each model name has its answers, the last one for all further calls.

    The embedding of a text is its length and 0.5.
    """

    def __init__(self, scripts: Mapping[str, Sequence[Script]]) -> None:
        self._scripts = {model: list(answers) for model, answers in scripts.items()}
        self.calls: list[ProviderCall] = []
        self.under_way = 0
        self.most_under_way = 0

    @asynccontextmanager
    async def stream(self, call: ProviderCall) -> AsyncIterator[AsyncIterator[list[Chunk | Completion]]]:
        self.calls.append(call)
        answers = self._scripts.get(call.target.model, [Script()])
        script = answers.pop(0) if len(answers) > 1 else answers[0]
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            async with aclosing(self._answer(script, call)) as batches:
                yield batches
        finally:
            self.under_way -= 1

    async def _answer(self, script: Script, call: ProviderCall) -> AsyncGenerator[list[Chunk | Completion], None]:
        await trio.sleep(script.first)
        if call.operation is Operation.EMBED and script.error is None:
            vectors = [[float(len(text)), 0.5] for text in call.inputs]
            yield [Completion(embeddings=vectors, usage=script.usage)]
            return
        tokens = [call.messages[-1].content] if script.echo else script.tokens
        for token in tokens:
            await trio.sleep(script.delay)
            yield [Chunk(token)]
        if script.error is not None:
            raise script.error
        yield [Completion(finish_reason=script.finish_reason, usage=script.usage)]


class ScriptedRegistry(ProviderRegistry):
    """Profile `fake`, of which `extra` says more, and all others are answered by one ScriptedProvider."""

    def __init__(
        self,
        scripts: Mapping[str, Sequence[Script]] | None = None,
        *,
        provider: ScriptedProvider | None = None,
        **extra: Any,
    ) -> None:
        self.provider = provider or ScriptedProvider(scripts or {})
        super().__init__(
            [fake_profile(**extra)],
            local_tool=LocalToolProvider(environment={}),
            network=Network(proxies={}),
            servers=ModelServers(nursery=None, open_server=None),  # type: ignore[arg-type]  # no profile names one
            redactor=Redactor(),
        )

    def _providers(self, kind: ProviderKind, client: HttpClient) -> Mapping[Operation, Provider]:
        return dict.fromkeys(Operation, self.provider)

    @property
    def calls(self) -> list[ProviderCall]:
        return self.provider.calls

    @property
    def under_way(self) -> int:
        return self.provider.under_way

    @property
    def most_under_way(self) -> int:
        return self.provider.most_under_way

    @property
    def prompts(self) -> list[str]:
        return [call.messages[-1].content for call in self.calls if call.messages]


def fake_profile(
    base_uri: str = "", *, model: str = "plain", api_key: Secret | None = None, **extra: Any
) -> ProviderProfile:
    """The scripted profile, whose calls may take as long as they like."""
    return ProviderProfile(
        id="fake",
        kind=ProviderKind.OPENAI,
        base_uri=base_uri,
        api_key=api_key,
        default_model=model,
        extra=ProviderExtra(**{"first_token_timeout_s": 1e9, "idle_timeout_s": 1e9, **extra}),
    )


class ScriptedProcesses(WorkerProcesses):
    """Answers with what it was given, or raises it, without a process."""

    def __init__(self, answer: Json | WorkerError) -> None:
        super().__init__()
        self._script = answer
        self.requests: list[Json] = []

    async def ask(self, request: Mapping[str, object], *, purpose: str) -> Json:
        self.requests.append({**request, "purpose": purpose})
        await trio.lowlevel.checkpoint()
        if isinstance(self._script, WorkerError):
            raise self._script
        return self._script


@dataclass(slots=True, kw_only=True)
class Setting:
    engine: Engine
    registry: ProviderRegistry
    store: Store
    writer: StoreWriter
    pipelines: Pipelines

    async def submit(self, steps: Sequence[Json], sources: Sequence[str | Json] = (), **request: Any) -> Job:
        return await self.engine.submit(job_request(steps, sources, **request))

    async def run(self, steps: Sequence[Json], sources: Sequence[str | Json] = (), **request: Any) -> Job:
        job = await self.submit(steps, sources, **request)
        return await self.engine.wait(job.id)

    async def events(self, job_id: JobId, after_seq: int = 0) -> list[Json]:
        """All events of the job, until its last."""
        return [event async for event in self.follow(job_id, after_seq)]

    async def follow(self, job_id: JobId, after_seq: int = 0) -> AsyncGenerator[Json, None]:
        async with self.engine.follow(job_id, after_seq=after_seq) as follower:
            while (lines := await follower.next_batch()) is not None:
                for line in lines:
                    yield json.loads(line)

    def stored_events(self, job_id: JobId) -> list[Json]:
        return [json.loads(event.line) for event in self.store.read_events(job_id, limit=100_000, max_bytes=1 << 30)]


@asynccontextmanager
async def open_setting(
    *,
    store: Store | None = None,
    registry: ProviderRegistry | None = None,
    handlers: Handlers | None = None,
    limits: EngineLimits | None = None,
    pipelines: Sequence[RegisteredPipeline] = (),
    artifacts: Path = Path("/nonexistent"),
    max_items: int = 10_000,
    grace_s: float = 0,
    clock: AgeClock | None = None,
    tracer: Tracer = NO_TRACER,
    processes: WorkerProcesses | None = None,
) -> AsyncIterator[Setting]:
    store = MemoryStore() if store is None else store
    registry = ScriptedRegistry() if registry is None else registry
    handlers = handlers or Handlers()
    templates = Templates()
    processes = processes or WorkerProcesses()
    known = Pipelines(pipelines)
    writer = StoreWriter(store=store)
    engine = Engine(
        access=StoreAccess(store, threads=4),
        writer=writer,
        services=Services(
            renderer=Renderer(templates, processes=processes),
            processes=processes,
            registry=registry,
            handlers=handlers,
            artifacts=ArtifactFiles(artifacts),
            workers=trio.CapacityLimiter(4),
            max_items=max_items,
            tracer=tracer,
        ),
        admission=Admission(
            pipelines=known,
            checker=DefinitionChecker(
                templates=templates, profiles=registry.get, profile_ids=registry.ids, handlers=handlers.known
            ),
            processes=processes,
        ),
        limits=limits,
        clock=clock,
    )
    async with running(engine, writer, grace_s=grace_s):
        yield Setting(engine=engine, registry=registry, store=store, writer=writer, pipelines=known)


def job_request(steps: Sequence[Json], sources: Sequence[str | Json] = (), **request: Any) -> JobRequest:
    """A request with an inline pipeline; `options` go to the input, `pipeline` to the definition."""
    pipeline = {"type": "test.v1", "steps": list(steps), **request.pop("pipeline", {})}
    job_input = {"sources": [source(text) for text in sources], "options": request.pop("options", {})}
    return decode({"pipeline": pipeline, "input": job_input, **request}, JobRequest)


def example_steps(name: str) -> list[Json]:
    """The steps of an example, its models the scripted ones."""
    example = Path(__file__).resolve().parents[1] / "examples" / name
    definition: Any = parse_document(example.read_bytes(), name=name).value
    steps: list[Json] = definition["steps"]
    return [{**step, "provider_profile_id": "fake"} if step["kind"] == "llm" else step for step in steps]


def source(value: str | Json) -> Json:
    return {"kind": "note", "label": "s", "content": value} if isinstance(value, str) else value


def llm(step_id: str, model: str = "plain", **step: Any) -> Json:
    """An exported step on the scripted profile."""
    override = {"default_model": model}
    return {
        "id": step_id,
        "kind": "llm",
        "provider_profile_id": "fake",
        "provider_override": override,
        "export": True,
        **step,
    }


def texts(job: Job, step_id: str | None = None) -> list[str]:
    items = job.result.items if job.result is not None else []
    return [item.data["text"] for item in items if step_id in (None, item.step_id)]


def statuses(job: Job) -> dict[str, str]:
    return {execution.step_id: execution.status.value for execution in job.step_executions or ()}


def names(events: Sequence[Json]) -> list[str]:
    return [event["event"] for event in events]


def step_events(events: Sequence[Json]) -> Iterator[tuple[str, str]]:
    """(event, step) of each event that a step's status brings."""
    for event in events:
        if event["event"].startswith("step_") and event["event"] not in ("step_progress", "step_retrying"):
            yield event["event"], event["data"]["step_id"]
