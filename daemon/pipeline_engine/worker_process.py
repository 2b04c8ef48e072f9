"""The program of a worker process: a JSON line comes in, a JSON line goes out, within limits of its own."""

from __future__ import annotations

import json
import resource
import select
import sys
from typing import Any

from pipeline_engine.errors import TemplateError
from pipeline_engine.jsontext import JsonTextError, dumps_compact
from pipeline_engine.templates import Templates

CPU_SECONDS = 30  # for one request; with the default fuel no rendering needs a third of it
MEMORY_BYTES = 2 * 1024**3
IDLE_SECONDS = 60  # without a request the process ends


def main() -> None:
    """Answer requests until there are no more, or none for a while."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    templates = Templates()
    while select.select([sys.stdin], [], [], IDLE_SECONDS)[0] and (line := sys.stdin.buffer.readline()):
        _allow_processor_time()
        sys.stdout.buffer.write(_answer(templates, line).encode("utf-8", "surrogatepass") + b"\n")
        sys.stdout.buffer.flush()


def _allow_processor_time() -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime) + 1
    # The kernel ends the process with SIGXCPU: nothing in it needs to be able to run.
    resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS, resource.RLIM_INFINITY))


def _answer(templates: Templates, line: bytes) -> str:
    # Not loads_strict: the daemon wrote it, and a value that is nested as deep as it may be stands one level deeper here.
    request: dict[str, Any] = json.loads(line.decode("utf-8", "surrogatepass"))
    try:
        return dumps_compact({"value": _outcome(templates, request)})
    except TemplateError as exc:
        return dumps_compact({"error": exc.message, "details": exc.details})
    except JsonTextError as exc:
        return dumps_compact({"error": f"a value {exc}", "details": {}})


def _outcome(templates: Templates, request: dict[str, Any]) -> Any:
    """What is asked for by `work`: `render` and `evaluate` as Templates does, `validate` as steps/schemas.py does."""
    if request["work"] == "validate":
        from pipeline_engine.steps.schemas import validate  # noqa: PLC0415 - slow to import, and few need it

        return validate(request["value"], request["schema"])
    templates.fuel = request["fuel"]
    run = templates.evaluate if request["work"] == "evaluate" else templates.render
    return run(request["source"], request["context"])
