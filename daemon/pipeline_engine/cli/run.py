"""`pipeline-engine run`: one job with an engine in the process and a store of its own."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec
import trio
from msgspec.structs import replace
from rich.console import Console

from pipeline_engine import job_runner
from pipeline_engine.assembly import LocalEngine, file_checker, open_local_engine
from pipeline_engine.cli import EXIT_INTERRUPTED
from pipeline_engine.cli.display import (
    Display,
    LiveDisplay,
    PlainDisplay,
    QuietDisplay,
    print_error,
    print_items,
    printable,
)
from pipeline_engine.cli.likely_mistakes import warn, warn_of_mistakes
from pipeline_engine.cli.options import option_values, parse_options, text_hint
from pipeline_engine.cli.sources import job_input, parse_sources
from pipeline_engine.config import Config
from pipeline_engine.config_loader import load_config
from pipeline_engine.decoding import to_json
from pipeline_engine.definitions import load_definitions, load_directories
from pipeline_engine.engine import Engine
from pipeline_engine.errors import InvalidRequestError, PipelineEngineError, Problem, UnknownPipelineError
from pipeline_engine.logs import log_to_terminal
from pipeline_engine.models import Job, JobId, JobInput, JobRequest, JobStatus, PipelineDef
from pipeline_engine.redaction import Redactor
from pipeline_engine.suggestions import known_names

EXIT_CODES = {JobStatus.SUCCEEDED: 0, JobStatus.FAILED: 1, JobStatus.CANCELLED: 130}


@click.command()
@job_input
@click.option("--dry-run", is_flag=True, help="Render the prompts and walk the steps, but call nobody.")
@click.option("--json", "as_json", is_flag=True, help='Print {"job"} instead of the results.')
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="A configuration file.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Keep the job here, and go on with unfinished ones.")
def command(
    pipeline: str,
    sources: tuple[str, ...],
    options: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    config_file: Path | None,
    data_dir: Path | None,
) -> None:
    """Run one job without a daemon: a definition FILE, or the TYPE of a pipeline that the configuration knows.

    The results go to standard output, progress to standard error. Exit codes: 0 ok, 1 the job failed, 2 usage or a
    bad file, 130 cancelled (Ctrl-C cancels the job; a second one ends the program at once).
    """
    config = load_config(environ=os.environ, config_file=config_file, overrides={})
    definition = _definition(pipeline, config)
    written = parse_options(options)
    request = JobRequest(
        pipeline=definition,
        pipeline_type=None if definition is not None else pipeline,
        input=JobInput(sources=parse_sources(sources)),
        dry_run=dry_run,
    )
    with ExitStack() as stack:
        if data_dir is None:
            # Of a program that ends at once something may still be writing there.
            folder = tempfile.TemporaryDirectory(prefix="pipeline-engine-", ignore_cleanup_errors=True)
            data_dir = Path(stack.enter_context(folder))
        display = _display(quiet=quiet)
        stack.callback(display.close)
        redactor = Redactor()
        log_to_terminal(sys.stderr, redact=redactor.redact)
        job_runner.log.setLevel(logging.ERROR)  # how the job ends is shown anyway

        def end_at_once() -> NoReturn:
            # Whatever was interrupted by this, the display perhaps: the program ends. What tools and model servers
            # have started ends as it does when a daemon is killed.
            try:
                stack.close()
                os.write(sys.stderr.fileno(), b"pipeline-engine: interrupted\n")
            finally:
                os._exit(EXIT_INTERRUPTED)

        with _printing_to_stderr():
            job = trio.run(_run, config, data_dir, redactor, request, written, display, end_at_once)
    if isinstance(job, UnknownPipelineError):
        hint = "a definition file is named by its path, and found by its type in PIPELINE_ENGINE_PIPELINES_DIR"
        raise PipelineEngineError(f"{job.message}; {hint}")
    if isinstance(job, PipelineEngineError):
        job.message += text_hint(job.message, written)
        raise job
    _report(job, as_json=as_json)
    sys.exit(EXIT_CODES[job.status])


def _definition(pipeline: str, config: Config) -> PipelineDef | None:
    """The definition in the file of that name; None when it is the type of a configured pipeline."""
    path = Path(pipeline)
    is_path = path.suffix in {".yaml", ".yml", ".json", ".toml"} or "/" in pipeline
    if is_path and not path.exists():
        raise InvalidRequestError([Problem("", "there is no such file")], source=pipeline)
    if not is_path and not path.is_file():  # a directory may have the name of a pipeline by chance
        _warn_of_bad_files(config)
        return None
    loaded = load_definitions(path, checker=file_checker(config))
    if len(loaded) != 1:
        types = ", ".join(one.definition.type for one in loaded)
        words = (
            f"holds {len(loaded)} definitions ({types}); put its folder in PIPELINE_ENGINE_PIPELINES_DIR and name one"
        )
        raise InvalidRequestError([Problem("", words)], source=pipeline)
    return loaded[0].definition


def _warn_of_bad_files(config: Config) -> None:
    """A type that nobody knows may be defined by a file that cannot be used."""
    loaded = load_directories(config.pipelines_dirs, checker=file_checker(config))
    for error in loaded.errors.values():
        print(printable(f"pipeline-engine: left out: {error.message}"), file=sys.stderr)


def _display(*, quiet: bool) -> Display:
    if quiet:
        return QuietDisplay()
    console = Console(stderr=True)
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(sys.stderr)


@contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """Keep standard output for the results: what handlers print in the block, and programs that they start, is none."""
    is_terminal = os.isatty(1)
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        if is_terminal:
            _abandon([1])


async def _run(
    config: Config,
    data_dir: Path,
    redactor: Redactor,
    request: JobRequest,
    options: Mapping[str, str],
    display: Display,
    end_at_once: Callable[[], NoReturn],
) -> Job | PipelineEngineError:
    """The finished job, or why there is none: an exception would come out of the engine's nurseries in groups."""
    async with open_local_engine(config, data_dir=data_dir, environ=os.environ, redactor=redactor) as local:
        engine = local.engine
        try:
            definition = request.pipeline or local.catalog.pipelines.find(request.pipeline_type or "").definition
            values = option_values(options, definition.options_schema)
            job_input = replace(request.input, options=values)
            job = await engine.submit(replace(request, input=job_input))
        except PipelineEngineError as exc:
            return exc
        _warn_of_mistakes(local, definition, job_input)
        async with _cancelled_by_signals(engine, job.id, end_at_once), engine.follow(job.id) as follower:
            while (lines := await follower.next_batch()) is not None:
                for line in lines:
                    display.show(msgspec.json.decode(line))
        return await engine.get_job(job.id)


def _warn_of_mistakes(local: LocalEngine, definition: PipelineDef, job_input: JobInput) -> None:
    warn_of_mistakes(definition, has_sources=bool(job_input.sources))
    # An option that nothing reads is most likely misspelt.
    read = local.checker.options_read(definition)
    if read is None:
        return
    for name in job_input.options:
        if name not in read:
            warn(f"nothing in this pipeline reads the option {name!r}; {known_names(name, read)}")


@asynccontextmanager
async def _cancelled_by_signals(
    engine: Engine, job_id: JobId, end_at_once: Callable[[], NoReturn]
) -> AsyncIterator[None]:
    """While in the block, the first Ctrl-C (or SIGTERM) cancels the job, and a second one ends the program.

    A terminal that is closed (SIGHUP) cancels the job as well.
    """
    token = trio.lowlevel.current_trio_token()
    asked = trio.Event()
    signals = 0
    terminals = [number for number in (0, 1, 2) if os.isatty(number)]

    def heed(number: int, _: object) -> None:
        nonlocal signals
        if number == signal.SIGHUP:
            # Both the kernel and the shell send it, one perhaps while the job's data is being removed.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            _abandon(terminals)
        signals += 1
        if signals > 1:
            # Not by way of the event loop: a handler may be blocking it, and a tool have a long grace.
            end_at_once()
        token.run_sync_soon(asked.set)

    async def cancel() -> None:
        await asked.wait()
        await engine.cancel(job_id, "cancelled by the user")

    heeded = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        heeded.append(signal.SIGHUP)
    before = {number: signal.signal(number, heed) for number in heeded}
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel)
            yield
            nursery.cancel_scope.cancel()
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is heed:
                signal.signal(number, handler)


def _abandon(terminals: Iterable[int]) -> None:
    """Let the descriptors of terminals that are gone lead nowhere, where writing to them fails."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in terminals:
        if not os.isatty(number):
            os.dup2(nowhere, number)
    os.close(nowhere)


def _report(job: Job, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(to_json({"job": job}).decode() + "\n")
        sys.stdout.flush()
    else:
        items: list[dict[str, Any]] = msgspec.json.decode(to_json(job.result.items)) if job.result is not None else []
        console = Console() if sys.stdout.isatty() else None
        print_items(items, console=console, stream=sys.stdout)
    if job.error is not None:
        print_error(msgspec.json.decode(to_json(job.error)), status=job.status, stream=sys.stderr)
