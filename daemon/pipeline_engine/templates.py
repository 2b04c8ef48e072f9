"""Checking and rendering of prompt templates and expressions, strict and bounded by fuel."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any

from pipeline_engine import template_source
from pipeline_engine.errors import TemplateError
from pipeline_engine.template_engine import (
    BrokenEngineError,
    FuelSpentError,
    Source,
    TemplateEngine,
    TooLargeInlineError,
)

DEFAULT_FUEL = 20_000_000
#: What a rendering may use on the event loop: at most a few milliseconds.
SMALL_FUEL = 100_000
CACHED_SOURCES = 512
CACHED_SOURCE_CHARS = 100_000  # a longer source is looked at anew each time

#: MiniJinja's binding looks top-level names up in a Python dict, and then among the attributes of that dict.
_DICT_METHODS = frozenset(name for name in dir(dict) if not name.startswith("_"))


class Templates:
    """Compiles, checks and renders. Safe to use from several threads.

    A context holds JSON data: dict, list, str, int, float, bool and None. It is never copied or converted as a whole:
    only what a template touches is looked at, so passing all of `previous` to each of a thousand renderings is cheap.

    `fuel` bounds the instructions and the characters that one rendering may use. It cannot bound what a single
    instruction does to a value that snowballed: see renderer.py, which keeps such renderings out of the daemon.
    """

    def __init__(self, *, fuel: int = DEFAULT_FUEL) -> None:
        self.fuel = fuel
        # An engine holds a lock while it renders, so each thread borrows one of its own.
        self._engines: deque[TemplateEngine] = deque()
        self._sources: OrderedDict[tuple[str, bool], Source] = OrderedDict()
        self._sources_lock = Lock()

    def check_template(self, source: str, *, names: Collection[str], steps: Collection[str]) -> list[str]:
        """Everything that is wrong with a template that may use the variables `names` and the items of `steps`."""
        return self._check(source, names, steps, is_expression=False)

    def check_expression(self, source: str, *, names: Collection[str], steps: Collection[str]) -> list[str]:
        """Like check_template, for an expression without braces."""
        return self._check(source, names, steps, is_expression=True)

    def keys_read(self, source: str, name: str, *, is_expression: bool) -> set[str | None]:
        """The keys that a source reads of the object `name`; None is among them if it may read any."""
        with self._engine() as engine:
            tags = self._source(engine, source, is_expression=is_expression).tags
        return {key for _, key in template_source.keys_read(tags, name)}

    def render(self, source: str, context: Mapping[str, object]) -> str:
        """The text that the template gives. Raises TemplateError."""
        return str(self._run(source, context, is_expression=False, fuel=self.fuel, inline=False))

    def evaluate(self, source: str, context: Mapping[str, object]) -> Any:
        """The value of an expression without braces, as plain Python data. Raises TemplateError."""
        return self._run(source, context, is_expression=True, fuel=self.fuel, inline=False)

    def run_small(self, source: str, context: Mapping[str, object], *, is_expression: bool) -> tuple[bool, Any]:
        """Whether the rendering is small enough for the event loop, and if so its text or value. Raises TemplateError."""
        with self._engine() as engine:
            if self._source(engine, source, is_expression=is_expression).can_snowball:
                return False, None
        try:
            fuel = min(SMALL_FUEL, self.fuel)
            return True, self._run(source, context, is_expression=is_expression, fuel=fuel, inline=True)
        except (FuelSpentError, TooLargeInlineError):
            return False, None  # rendering has no side effects, so it can start again where it disturbs nobody

    def context_read(self, source: str, context: Mapping[str, object], *, is_expression: bool) -> dict[str, object]:
        """The part of a context that a source can look at."""
        with self._engine() as engine:
            looked_at = self._source(engine, source, is_expression=is_expression)
        read = {name: context[name] for name in looked_at.undeclared if name in context}
        for name, value in read.items():
            keys = {key for _, key in template_source.keys_read(looked_at.tags, name)}
            if isinstance(value, dict) and None not in keys:
                read[name] = {key: value[key] for key in keys if key in value}
        return read

    def _run(self, text: str, context: Mapping[str, object], *, is_expression: bool, fuel: int, inline: bool) -> Any:
        with self._engine() as engine:
            source = self._source(engine, text, is_expression=is_expression)
            if source.refused is not None:
                raise TemplateError(source.refused)
            for name in sorted(source.undeclared & _DICT_METHODS):
                if name not in context:
                    line = template_source.line_of(source.tags, name)
                    raise TemplateError(f"line {line}: {name} is undefined", details={"line": line})
            return engine.run(source, context, fuel=fuel, inline=inline)

    def _check(self, text: str, names: Collection[str], steps: Collection[str], *, is_expression: bool) -> list[str]:
        with self._engine() as engine:
            source = self._source(engine, text, is_expression=is_expression)
            return engine.problems(source, names, steps) if source.refused is None else [source.refused]

    @contextmanager
    def _engine(self) -> Iterator[TemplateEngine]:
        try:
            engine = self._engines.pop()
        except IndexError:
            engine = TemplateEngine()
        try:
            yield engine
        except BrokenEngineError:
            raise
        except BaseException:
            self._engines.append(engine)
            raise
        self._engines.append(engine)

    def _source(self, engine: TemplateEngine, text: str, *, is_expression: bool) -> Source:
        key = (text, is_expression)
        with self._sources_lock:
            source = self._sources.get(key)
            if source is not None:
                self._sources.move_to_end(key)
                return source
        source = engine.analyse(text, is_expression=is_expression)
        if len(text) <= CACHED_SOURCE_CHARS:
            with self._sources_lock:
                self._sources[key] = source
                if len(self._sources) > CACHED_SOURCES:
                    self._sources.popitem(last=False)
        return source
