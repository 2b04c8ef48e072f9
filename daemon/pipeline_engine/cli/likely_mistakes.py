"""What is most likely a mistake in a definition or in a job of it, though it can run."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from pipeline_engine.cli.display import printable
from pipeline_engine.models import PipelineDef, StepDef, StepMode


def warn(words: str) -> None:
    """Say so on standard error, where it does not mix with results."""
    print(printable(f"pipeline-engine: warning: {words}"), file=sys.stderr)


def warn_of_mistakes(definition: PipelineDef, *, has_sources: bool) -> None:
    """Warn of a job that can have no result, and of steps that have nothing to work on."""
    for words in _mistakes(definition, has_sources=has_sources):
        warn(words)


def _mistakes(definition: PipelineDef, *, has_sources: bool) -> Iterator[str]:
    if not any(step.export for step in definition.steps):
        yield "no step has export: true, so there is no result"
    if not has_sources:
        splitting = [step.id for step in definition.steps if _splits_sources(step)]
        if splitting:
            yield f"there are no sources (--source), so these steps make no items: {', '.join(splitting)}"


def _splits_sources(step: StepDef) -> bool:
    """Contract 2: per_item without dependencies acts as fanout."""
    is_split = step.mode is StepMode.FANOUT or (step.mode is StepMode.PER_ITEM and not step.depends_on)
    return is_split and step.config.over is None
