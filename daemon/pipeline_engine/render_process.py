"""The program of a rendering process: a JSON line comes in, a JSON line goes out, within limits of its own."""

from __future__ import annotations

import resource
import select
import sys
from typing import Any

from pipeline_engine.errors import TemplateError
from pipeline_engine.jsontext import JsonTextError, dumps_compact, loads_strict
from pipeline_engine.templates import Templates

CPU_SECONDS = 30  # for one rendering; with the default fuel none needs a third of it
MEMORY_BYTES = 2 * 1024**3
IDLE_SECONDS = 60  # without a request the process ends


def main(fuel: int) -> None:
    """Answer requests until there are no more, or none for a while."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    templates = Templates(fuel=fuel)
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
    try:
        request: dict[str, Any] = loads_strict(line.decode("utf-8", "surrogatepass"))
        run = templates.evaluate if request["is_expression"] else templates.render
        return dumps_compact({"value": run(request["source"], request["context"])})
    except TemplateError as exc:
        return dumps_compact({"error": exc.message, "details": exc.details})
    except JsonTextError as exc:
        return dumps_compact({"error": f"a value {exc}", "details": {}})
