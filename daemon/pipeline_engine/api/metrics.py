"""Health, and the numbers that the daemon counts: as JSON and for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline_engine import __version__
from pipeline_engine.api.calls import TEXT, Answer, Call, Route, json_answer, text_answer
from pipeline_engine.api.context import Api
from pipeline_engine.api.wire import Health, ProviderMetrics, Readiness
from pipeline_engine.assembly import LocalEngine
from pipeline_engine.histograms import Histogram
from pipeline_engine.models import JobStatus, ProviderKind, StepStatus

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


async def get_health(api: Api, call: Call) -> Answer:
    # Asks nobody: a daemon whose store hangs is alive, and a restart would not help it.
    return json_answer(Health(version=__version__, uptime_sec=round(api.uptime_s, 3)))


async def get_readiness(api: Api, call: Call) -> Answer:
    if api.refusal is not None:
        raise api.refusal
    return json_answer(Readiness())


async def get_metrics(api: Api, call: Call) -> Answer:
    return json_answer(api.ready_local.registry.metrics())


async def get_prometheus_metrics(api: Api, call: Call) -> Answer:
    return text_answer("".join(_metrics(api, api.ready_local)), content_type=PROMETHEUS)


def _metrics(api: Api, local: LocalEngine) -> Iterable[str]:
    engine = local.engine
    yield _family("info", "gauge", "The version that runs.", {f'version="{__version__}"': 1})
    yield _family("uptime_seconds", "gauge", "Seconds since the start.", {"": round(api.uptime_s, 3)})
    jobs = {'status="queued"': engine.queued_count, 'status="running"': engine.running_count}
    yield _family("jobs", "gauge", "Unfinished jobs.", jobs)
    finished = {f'status="{status}"': engine.finished[status] for status in JobStatus if status.is_final}
    yield _family("jobs_finished_total", "counter", "Jobs that ended since the start.", finished)
    yield _family("steps_running", "gauge", "Steps that run.", {"": engine.step_stats.running})
    ended = {f'status="{status}"': engine.step_stats.ended[status] for status in StepStatus if status.is_final}
    yield _family("steps_finished_total", "counter", "Steps that ended since the start.", ended)
    threads = engine.handler_threads
    states = {'state="running"': threads.running, 'state="abandoned"': threads.abandoned}
    yield _family("handler_threads", "gauge", "Threads of plain handlers, and those left behind by jobs.", states)
    broken = len(local.catalog.pipelines.broken_files)
    yield _family("definition_files_broken", "gauge", "Definition files that cannot be used.", {"": broken})
    yield _family("followers", "gauge", "Followers of unfinished jobs.", {"": engine.follower_count})
    lag = {"": api.loop_lag.turns}
    yield _histogram("event_loop_lag_seconds", "How long what was ready had to wait for the event loop at most.", lag)
    yield from _store_metrics(local)
    counted = local.registry.metrics()
    for key, name, words, scale in (
        ("provider_call_count", "provider_calls_total", "Calls to providers.", 1),
        ("provider_call_errors", "provider_call_errors_total", "Calls to providers that failed.", 1),
        ("provider_call_latency", "provider_call_seconds_total", "What calls to providers took, summed.", 1000),
        ("provider_chunk_count", "provider_chunks_total", "Pieces that providers sent.", 1),
    ):
        values = {f'kind="{kind}"': count if scale == 1 else count / scale for kind, count in counted[key].items()}
        yield _family(name, "counter", words, values)
    yield from _call_metrics(local)


def _store_metrics(local: LocalEngine) -> Iterable[str]:
    writer, store = local.writer, local.access.store
    healthy = int(writer.failure is None)
    yield _family("store_healthy", "gauge", "Whether the store can be written.", {"": healthy})
    yield _family("store_commits_total", "counter", "Transactions since the start.", {"": writer.commits})
    yield _histogram("store_commit_seconds", "How long transactions took.", {"": writer.commit_seconds})
    operations, size = writer.pending
    yield _family("store_queue_operations", "gauge", "Changes that are not committed yet.", {"": operations})
    yield _family("store_queue_bytes", "gauge", "What changes that are not committed yet hold.", {"": size})
    yield _family("store_bytes", "gauge", "What the database holds.", {"": store.used_bytes})
    yield _family("store_file_bytes", "gauge", "The size of the database's file.", {"": store.file_bytes})
    yield _family("store_wal_bytes", "gauge", "The size of the write-ahead log.", {"": store.wal_bytes})


def _call_metrics(local: LocalEngine) -> Iterable[str]:
    stats = local.registry.stats
    retries = {f'kind="{kind}"': stats.retries[kind] for kind in ProviderKind}
    yield _family("provider_retries_total", "counter", "Further attempts at calls to providers.", retries)
    tokens = {
        f'kind="{kind}",direction="{direction}"': counts[kind]
        for direction, counts in (("prompt", stats.prompt_tokens), ("completion", stats.completion_tokens))
        for kind in ProviderKind
    }
    yield _family("provider_tokens_total", "counter", "Tokens as providers counted them.", tokens)
    limited = local.registry.limited()
    running = {f'profile="{_label(profile)}"': running for profile, (running, _) in limited.items()}
    waiting = {f'profile="{_label(profile)}"': waiting for profile, (_, waiting) in limited.items()}
    yield _family("provider_running", "gauge", "Calls that run, by profile.", running)
    allowed = {f'profile="{_label(profile)}"': count for profile, count in local.registry.concurrency().items()}
    yield _family("provider_concurrency", "gauge", "Calls that may run at once, by profile with a limit.", allowed)
    yield _family("provider_waiting", "gauge", "Calls that wait for the limits of their profile.", waiting)
    first = {f'kind="{kind}"': histogram for kind, histogram in stats.first_token.items()}
    yield _histogram("provider_first_token_seconds", "From a call to the first piece of its answer.", first)


def _label(text: str) -> str:
    """The text as the value of a label."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _histogram(name: str, words: str, values: Mapping[str, Histogram]) -> str:
    full = f"pipeline_engine_{name}"
    lines = [f"# HELP {full} {words}", f"# TYPE {full} histogram"]
    for labels, histogram in values.items():
        counts, own = histogram.counts, f"{{{labels}}}" if labels else ""
        for bound, count in zip((*histogram.bounds, "+Inf"), counts, strict=True):
            lines.append(f'{full}_bucket{{{labels}{"," if labels else ""}le="{bound}"}} {count}')
        lines += [f"{full}_sum{own} {histogram.total}", f"{full}_count{own} {counts[-1]}"]
    return "\n".join(lines) + "\n"


def _family(name: str, type_: str, words: str, values: Mapping[str, float]) -> str:
    """One metric in the text format; the keys of the values are their labels."""
    full = f"pipeline_engine_{name}"
    lines = [f"# HELP {full} {words}", f"# TYPE {full} {type_}"]
    lines += [f"{full}{{{labels}}} {value}" if labels else f"{full} {value}" for labels, value in values.items()]
    return "\n".join(lines) + "\n"


ROUTES = (
    Route(
        method="GET",
        path="/health",
        handler=get_health,
        tag="daemon",
        summary="Whether the daemon is alive.",
        answers={200: Health},
        needs_engine=False,
    ),
    Route(
        method="GET",
        path="/health/ready",
        handler=get_readiness,
        tag="daemon",
        summary="Whether the daemon takes jobs: not while it starts, stops, or cannot write its store.",
        answers={200: Readiness},
        errors=("store_full",),
    ),
    Route(
        method="GET",
        path="/v1/metrics",
        handler=get_metrics,
        tag="daemon",
        summary="Calls to providers since the start, by kind.",
        answers={200: ProviderMetrics},
    ),
    Route(
        method="GET",
        path="/metrics",
        handler=get_prometheus_metrics,
        tag="daemon",
        summary="All metrics in the text format of Prometheus.",
        answers={200: TEXT.partition(";")[0]},
    ),
)
