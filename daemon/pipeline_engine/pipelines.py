"""The pipelines that jobs can name: those of files and of the environment, and those that clients put."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline_engine.errors import ConflictError, NotFoundError, UnknownPipelineError
from pipeline_engine.models import PipelineDef


@dataclass(frozen=True, slots=True)
class RegisteredPipeline:
    """A definition, and where it comes from: a file's path, `environment`, or `api`."""

    definition: PipelineDef
    origin: str


class Pipelines:
    """Definitions by type. What a file defines goes before what a client has put under the same type."""

    def __init__(self, fixed: Iterable[RegisteredPipeline] = ()) -> None:
        self._fixed = {pipeline.definition.type: pipeline for pipeline in fixed}
        self._put: dict[str, RegisteredPipeline] = {}
        #: What is wrong with each definition file that cannot be used; the message names the file.
        self.broken_files: Sequence[str] = ()

    def replace_fixed(self, fixed: Iterable[RegisteredPipeline], *, broken_files: Sequence[str] = ()) -> None:
        """Use these instead of the files' and the environment's definitions so far."""
        self._fixed = {pipeline.definition.type: pipeline for pipeline in fixed}
        self.broken_files = broken_files

    def all(self) -> list[RegisteredPipeline]:
        """All definitions, by type."""
        return [pipeline for _, pipeline in sorted({**self._put, **self._fixed}.items())]

    def put_by_clients(self) -> list[PipelineDef]:
        """What clients have put, by type, also under a file's definition of the same type."""
        return [pipeline.definition for _, pipeline in sorted(self._put.items())]

    def find(self, pipeline_type: str) -> RegisteredPipeline:
        """Raises UnknownPipelineError, which lists those that are known, and the files that cannot be used."""
        found = self._fixed.get(pipeline_type) or self._put.get(pipeline_type)
        if found is None:
            raise UnknownPipelineError(pipeline_type, {*self._fixed, *self._put}, broken_files=self.broken_files)
        return found

    def check_changeable(self, pipeline_type: str, *, must_exist: bool) -> None:
        """Raises ConflictError for a definition of a file, NotFoundError where there is none to change."""
        fixed = self._fixed.get(pipeline_type)
        if fixed is not None:
            words = f"the pipeline {pipeline_type!r} is defined by {fixed.origin}; change it there"
            raise ConflictError(words)
        if must_exist and pipeline_type not in self._put:
            raise NotFoundError(f"there is no pipeline {pipeline_type!r}")

    def put(self, definition: PipelineDef) -> None:
        self._put[definition.type] = RegisteredPipeline(definition, "api")

    def remove(self, pipeline_type: str) -> None:
        self._put.pop(pipeline_type, None)
