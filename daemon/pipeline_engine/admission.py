"""Turns a request into a job, or says everything that is wrong with it."""

from __future__ import annotations

import base64
import binascii
import secrets
import time
from typing import Any

import msgspec

from pipeline_engine.definitions import DefinitionChecker
from pipeline_engine.errors import InvalidRequestError, Problem, UnavailableError
from pipeline_engine.models import (
    Job,
    JobId,
    JobInput,
    JobMode,
    JobRequest,
    JobStatus,
    Limits,
    PipelineDef,
    RerunRequest,
    Usage,
    now_rfc3339,
)
from pipeline_engine.pipelines import Pipelines
from pipeline_engine.steps.prompts import max_tokens_of
from pipeline_engine.steps.schema_checks import find_faults
from pipeline_engine.worker_processes import WorkerProcesses, WorkerStartError

_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's, in the order of ASCII


class Admission:
    """Checks requests against what the engine knows: its pipelines, and what the checker knows."""

    def __init__(self, *, pipelines: Pipelines, checker: DefinitionChecker, processes: WorkerProcesses) -> None:
        self.pipelines = pipelines
        self.checker = checker
        self._processes = processes
        self._last_stamp = 0

    def definition_of(self, request: JobRequest) -> PipelineDef:
        """The pipeline that a request names or brings. Raises InvalidRequestError and UnknownPipelineError."""
        if request.pipeline is not None:
            if request.pipeline_type is not None and request.pipeline_type != request.pipeline.type:
                words = "give either pipeline_type or pipeline, not both"
                raise InvalidRequestError([Problem("pipeline_type", words)])
            problems = self.checker.check(request.pipeline, path="pipeline")
            if problems:
                raise InvalidRequestError(problems)
            return request.pipeline
        if request.pipeline_type is None:
            raise InvalidRequestError([Problem("pipeline_type", "is required, or pipeline with a definition")])
        return self.pipelines.find(request.pipeline_type).definition

    def check_no_rerun(self, request: JobRequest) -> None:
        """Raises InvalidRequestError when a request without a parent says how to rerun one."""
        given = {"from_step_id": request.from_step_id is not None, "reuse_upstream": request.reuse_upstream}
        problems = [Problem(name, "needs parent_job_id") for name, is_given in given.items() if is_given]
        if request.mode is JobMode.RERUN:
            problems.append(Problem("mode", "rerun needs parent_job_id, the job that is to run again"))
        if problems:
            raise InvalidRequestError(problems)

    async def complete_input(
        self,
        definition: PipelineDef,
        job_input: JobInput,
        *,
        path: str = "input",
        inherited_from: JobId | None = None,
    ) -> JobInput:
        """The input with the defaults of the pipeline's `options_schema` for options that are missing.

        Raises InvalidRequestError for bytes that are not base64, and for options that we or the pipeline refuse.
        `path` is where the request has the input, or could have another than that of the job that it inherits it from.
        Raises UnavailableError when the options cannot be checked now.
        """
        job_input = _with_defaults(job_input, definition.options_schema)
        problems = []
        for index, source in enumerate(job_input.sources):
            where = f"{path}.sources[{index}]"
            if source.content_base64 is None:
                continue
            if source.content:
                problems.append(Problem(where, "has content and content_base64; give one of them"))
            try:
                base64.b64decode(source.content_base64, validate=True)
            except (binascii.Error, ValueError) as exc:
                problems.append(Problem(f"{where}.content_base64", f"is not base64: {exc}"))
        if job_input.options.get("max_tokens") not in (None, "") and max_tokens_of(job_input.options) is None:
            problems.append(Problem(f"{path}.options.max_tokens", "expected a whole number"))
        # Without a schema there is no turn of the event loop: storing the job has one, and most jobs come this way.
        if definition.options_schema is not None:
            try:
                faults = await find_faults(job_input.options, definition.options_schema, processes=self._processes)
            except WorkerStartError as exc:
                raise UnavailableError(exc.message) from exc
            problems += [Problem(f"{path}.options", fault) for fault in faults]
        if inherited_from is not None:
            words = f"in the input of the parent {inherited_from}"
            problems = [Problem(problem.path, f"{words}: {problem.message}") for problem in problems]
        if problems:
            raise InvalidRequestError(problems)
        return job_input

    def new_job(
        self,
        definition: PipelineDef,
        job_input: JobInput,
        *,
        mode: JobMode,
        priority: int = 0,
        labels: dict[str, str] | None = None,
        timeout_s: float | None = None,
        limits: Limits | None = None,
        dry_run: bool = False,
    ) -> Job:
        """A queued job that nothing has been stored of yet."""
        now = now_rfc3339()
        return Job(
            id=self._new_id(),
            pipeline_type=definition.type,
            pipeline_version=definition.version,
            status=JobStatus.QUEUED,
            created_at=now,
            updated_at=now,
            mode=mode,
            input=job_input,
            reuse_upstream=False,
            timeout_s=timeout_s or definition.timeout_s,
            dry_run=dry_run,
            labels=dict(labels or {}),
            priority=priority,
            limits=_merged(limits, definition.limits),
            usage=Usage(),
            last_seq=1,
            restarts=0,
        )

    def new_rerun(
        self,
        parent: Job,
        before: PipelineDef,
        definition: PipelineDef,
        job_input: JobInput,
        rerun: RerunRequest,
        *,
        asked: JobRequest | None = None,
    ) -> Job:
        """A queued job that runs the parent again, as `asked` says, and where that says nothing, as the parent ran.

        What the parent had of its own definition, which is `before`, comes from the definition of the new job.
        Raises InvalidRequestError when it would reuse what nobody was called for.
        """
        asked = asked or JobRequest()
        dry_run = parent.dry_run if asked.dry_run is None else asked.dry_run
        if parent.dry_run and not dry_run and rerun.reuse_upstream:
            words = f"job {parent.id} was a dry run, so there is nothing to reuse; leave it out"
            raise InvalidRequestError([Problem("reuse_upstream", words)])
        job = self.new_job(
            definition,
            job_input,
            mode=JobMode.RERUN,
            priority=parent.priority if asked.priority is None else asked.priority,
            labels=asked.labels or parent.labels,
            timeout_s=asked.timeout_s or (None if parent.timeout_s == before.timeout_s else parent.timeout_s),
            limits=_merged(asked.limits, _requested(parent.limits, before.limits)),
            dry_run=dry_run,
        )
        job.parent_job_id = parent.id
        job.rerun_from_step = rerun.from_step_id
        job.reuse_upstream = rerun.reuse_upstream
        return job

    def _new_id(self) -> JobId:
        """`job_` and 26 digits that sort by time: 48 bits of milliseconds, which never run back, and 80 random ones."""
        self._last_stamp = max(time.time_ns() // 1_000_000, self._last_stamp + 1)
        number = self._last_stamp << 80 | secrets.randbits(80)
        digits = [_DIGITS[number >> shift & 31] for shift in range(125, -1, -5)]
        return JobId("job_" + "".join(digits))


def _with_defaults(job_input: JobInput, schema: dict[str, Any] | None) -> JobInput:
    missing = {name: value for name, value in _defaults(schema).items() if name not in job_input.options}
    return msgspec.structs.replace(job_input, options={**job_input.options, **missing}) if missing else job_input


def _requested(limits: Limits | None, own: Limits | None) -> Limits | None:
    """Of the limits of a job, those that are not of its own definition: a request has asked for them."""
    if limits is None or own is None:
        return limits
    asked = Limits(
        max_provider_calls=None if limits.max_provider_calls == own.max_provider_calls else limits.max_provider_calls,
        max_total_tokens=None if limits.max_total_tokens == own.max_total_tokens else limits.max_total_tokens,
    )
    return None if asked == Limits() else asked


def without_defaults(job_input: JobInput, definition: PipelineDef) -> JobInput:
    """Without the options that are as the definition has them by default: for a rerun, whose own may have others."""
    defaults = _defaults(definition.options_schema)
    options = {
        name: value for name, value in job_input.options.items() if name not in defaults or value != defaults[name]
    }
    return msgspec.structs.replace(job_input, options=options)


def _defaults(schema: dict[str, Any] | None) -> dict[str, Any]:
    """The `default` of each property that the schema itself has one for."""
    properties = None if schema is None else schema.get("properties")
    if not isinstance(properties, dict):
        return {}
    return {
        name: declared["default"]
        for name, declared in properties.items()
        if isinstance(declared, dict) and "default" in declared
    }


def _merged(asked: Limits | None, own: Limits | None) -> Limits | None:
    """The limits that were asked for; where none was, those of the pipeline, or of the parent, stand."""
    if asked is None or own is None:
        return asked or own
    return Limits(
        max_provider_calls=own.max_provider_calls if asked.max_provider_calls is None else asked.max_provider_calls,
        max_total_tokens=own.max_total_tokens if asked.max_total_tokens is None else asked.max_total_tokens,
    )
