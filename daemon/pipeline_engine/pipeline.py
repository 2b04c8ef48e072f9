"""A pipeline definition as a graph: its check, its order, and what stands up- and downstream of a step."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterator
from functools import cached_property

import regex

from pipeline_engine.errors import Problem
from pipeline_engine.models import (
    MapOperation,
    OutputFormat,
    OutputType,
    PipelineDef,
    ReduceOperation,
    SplitBy,
    StepConfig,
    StepDef,
    StepId,
    StepKind,
    StepMode,
)

STEP_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: Lines, characters or elements of a piece; without an entry here it is one.
DEFAULT_SPLIT_SIZES = {SplitBy.CHARS: 4000}
MAX_SPLIT_SIZE = 1_000_000_000  # more than any source has, and few enough for every way to count
PROVIDER_KINDS = frozenset({StepKind.LLM, StepKind.IMAGE})

#: The keys of `config` that a kind of step understands, besides those that all kinds do.
_COMMON_KEYS = frozenset({"split", "over", "idempotent"})
_ANSWER_KEYS = frozenset({"json_schema", "repair_attempts"})
_KIND_KEYS = {
    StepKind.LLM: _ANSWER_KEYS | {"batch_size"},
    StepKind.IMAGE: frozenset[str](),
    StepKind.MAP: _ANSWER_KEYS | {"map", "template", "expression", "format", "pattern"},
    StepKind.REDUCE: _ANSWER_KEYS | {"reduce", "separator", "by", "n", "template"},
    StepKind.CUSTOM: _ANSWER_KEYS | {"handler"},
}
_DEFAULT_CONFIG = StepConfig()
_MAP_NEEDS = {
    MapOperation.TEMPLATE: "template",
    MapOperation.SELECT: "expression",
    MapOperation.FILTER: "expression",
    MapOperation.PARSE: "format",
    MapOperation.REGEX: "pattern",
}
#: Operations whose output is a text and never has a JSON value.
_TEXT_OPERATIONS = frozenset({MapOperation.TEMPLATE, ReduceOperation.TEMPLATE, ReduceOperation.CONCAT})
_REDUCE_NEEDS = {ReduceOperation.COUNT_BY: "by", ReduceOperation.TEMPLATE: "template"}


class Graph:
    """The steps of a checked definition and their dependencies.

    Ancestors are bit masks over the steps' positions, so that a chain of thousands of steps costs little.
    """

    def __init__(self, definition: PipelineDef) -> None:
        self.definition = definition
        self.steps: dict[StepId, StepDef] = {step.id: step for step in definition.steps}
        self.dependencies: dict[StepId, tuple[StepId, ...]] = {
            step.id: tuple(dict.fromkeys(step.depends_on)) for step in definition.steps
        }
        self.dependents: dict[StepId, list[StepId]] = {step_id: [] for step_id in self.steps}
        for step_id, dependencies in self.dependencies.items():
            for dependency in dependencies:
                self.dependents[dependency].append(step_id)
        self._position = {step_id: index for index, step_id in enumerate(self.steps)}

    @cached_property
    def order(self) -> tuple[StepId, ...]:
        """All steps, each after those it depends on, else as they are written."""
        return tuple(_topological(self.dependencies))

    @cached_property
    def _ancestor_masks(self) -> dict[StepId, int]:
        masks: dict[StepId, int] = {}
        for step_id in self.order:
            mask = 0
            for dependency in self.dependencies[step_id]:
                mask |= masks[dependency] | (1 << self._position[dependency])
            masks[step_id] = mask
        return masks

    def ancestors(self, step_id: StepId) -> list[StepId]:
        """The steps that this one depends on, directly or not, as they are written."""
        if not self.dependencies[step_id]:
            return []
        # Shifting the mask for each step would copy it each time: a long chain would take seconds.
        bits = reversed(f"{self._ancestor_masks[step_id]:b}")
        return [other for other, bit in zip(self._position, bits, strict=False) if bit == "1"]

    def downstream(self, step_id: StepId) -> set[StepId]:
        """The steps that depend on this one, directly or not."""
        bit = 1 << self._position[step_id]
        return {other for other, mask in self._ancestor_masks.items() if mask & bit}

    @property
    def last_exported(self) -> StepId | None:
        """The exported step that is written last: its items are the primary ones."""
        return next((step.id for step in reversed(self.definition.steps) if step.export), None)


def input_step(step: StepDef) -> StepId | None:
    """The step whose items (per_item) or elements (config.over) this one takes; None when it takes the sources."""
    if step.config.over is not None:
        return step.config.over
    if step.mode is StepMode.PER_ITEM and step.depends_on:
        return step.depends_on[-1]
    return None


def check(definition: PipelineDef, *, path: str = "", incomplete: Collection[int] = ()) -> list[Problem]:
    """Everything that is wrong with a decoded definition, apart from its templates and the profiles it names.

    Of the steps at the places `incomplete`, something was left out that other parts of a step have to do with.
    """
    prefix = f"{path}." if path else ""
    problems = []
    known = {step.id for step in definition.steps}
    seen: set[StepId] = set()
    for index, step in enumerate(definition.steps):
        where = f"{prefix}steps[{index}]"
        if not STEP_ID.fullmatch(step.id):
            problems.append(Problem(f"{where}.id", f"{step.id!r} is not 1 to 64 letters, digits, _ or -"))
        if step.id in seen:
            problems.append(Problem(f"{where}.id", f"the id {step.id!r} is used twice"))
        seen.add(step.id)
        for position, dependency in enumerate(step.depends_on):
            if dependency not in known:
                message = f"step {step.id!r} depends on {dependency!r}, which does not exist"
                problems.append(Problem(f"{where}.depends_on[{position}]", message))
        if index not in incomplete:
            problems += _check_step(step, where)
    if len(seen) == len(definition.steps) and any(step.depends_on for step in definition.steps):
        cycle = find_cycle({step.id: tuple(step.depends_on) for step in definition.steps})
        if cycle:
            problems.append(Problem(f"{prefix}steps", "the dependencies form a cycle: " + " -> ".join(cycle)))
    return problems


def _check_step(step: StepDef, where: str) -> Iterator[Problem]:
    config = step.config
    if step.kind in PROVIDER_KINDS and step.provider_profile_id is None:
        yield Problem(f"{where}.provider_profile_id", f"is required for a step of the kind {step.kind}")
    allowed = _COMMON_KEYS | _KIND_KEYS[step.kind]
    for key in config.__struct_fields__:
        if key not in allowed and getattr(config, key) != getattr(_DEFAULT_CONFIG, key):
            yield Problem(f"{where}.config.{key}", f"means nothing for a step of the kind {step.kind}")
    if config.over is not None and config.over not in step.depends_on:
        yield Problem(f"{where}.config.over", f"{config.over!r} must also stand in depends_on")
    if config.over is not None and config.split is not None:
        yield Problem(f"{where}.config.split", "a step has either over or split, not both")
    if step.mode is StepMode.SINGLE and (config.over is not None or config.split is not None):
        key = "over" if config.over is not None else "split"
        yield Problem(f"{where}.config.{key}", "needs mode: fanout or per_item")
    if config.split is not None:
        yield from _check_split(step, where)
    if step.provider_profile_id is None:
        yield from _check_operation(step, where)
    if step.output_type is OutputType.EMBEDDING and step.kind is not StepKind.LLM:
        yield Problem(f"{where}.output_type", "embedding needs a step of the kind llm")
    if step.output_type is OutputType.BINARY and step.output_format is not OutputFormat.TEXT:
        yield Problem(f"{where}.output_format", "bytes are not parsed: leave it out, or set another output_type")
    if step.output_type is OutputType.TABLE and step.output_format is OutputFormat.TEXT and _answers_text(step):
        yield Problem(f"{where}.output_format", "a table needs json_strict or json_loose: a text is not parsed")
    yield from _check_few_shot(step, where)


def _answers_text(step: StepDef) -> bool:
    """Whether nothing but a text can come of the step, until it is parsed."""
    operation = step.config.map if step.kind is StepKind.MAP else step.config.reduce
    return step.provider_profile_id is not None or operation in _TEXT_OPERATIONS


def _check_split(step: StepDef, where: str) -> Iterator[Problem]:
    split = step.config.split
    assert split is not None
    if input_step(step) is not None:
        yield Problem(f"{where}.config.split", "cuts sources, but this step takes the items of another step")
    if split.by is SplitBy.REGEX:
        yield from _check_regex(split.pattern, f"{where}.config.split.pattern")
    elif split.pattern is not None:
        yield Problem(f"{where}.config.split.pattern", "only means something with by: regex")
    if split.size is not None and split.size > MAX_SPLIT_SIZE:
        yield Problem(f"{where}.config.split.size", f"must be at most {MAX_SPLIT_SIZE:,}")
    if split.by is SplitBy.REGEX:
        for key, is_given in (("size", split.size is not None), ("overlap", split.overlap > 0)):
            if is_given:
                yield Problem(f"{where}.config.split.{key}", "means nothing with by: regex")
        return
    size = split.size or DEFAULT_SPLIT_SIZES.get(split.by, 1)
    if split.overlap and split.overlap >= size:
        yield Problem(f"{where}.config.split.overlap", f"must be smaller than size, {size}")


def _check_operation(step: StepDef, where: str) -> Iterator[Problem]:
    config = step.config
    if step.kind is StepKind.MAP:
        operation = config.map
        if operation is None:
            yield Problem(f"{where}.config.map", "is required for a map step without a provider")
            return
        needed = _MAP_NEEDS.get(operation)
        if needed is not None and getattr(config, needed) is None:
            yield Problem(f"{where}.config.{needed}", f"is required for map: {operation}")
        elif operation is MapOperation.REGEX:
            yield from _check_regex(config.pattern, f"{where}.config.pattern")
    elif step.kind is StepKind.REDUCE:
        if config.reduce is None:
            yield Problem(f"{where}.config.reduce", "is required for a reduce step without a provider")
            return
        needed = _REDUCE_NEEDS.get(config.reduce)
        if needed is not None and getattr(config, needed) is None:
            yield Problem(f"{where}.config.{needed}", f"is required for reduce: {config.reduce}")
    elif step.kind is StepKind.CUSTOM and config.handler is None:
        yield Problem(f"{where}.config.handler", "a custom step needs a handler, or a local_tool profile")


def _check_regex(pattern: str | None, where: str) -> Iterator[Problem]:
    if pattern is None:
        yield Problem(where, "is required for by: regex and map: regex")
        return
    try:
        regex.compile(pattern)
    except RecursionError:
        yield Problem(where, "is not a regular expression: it is nested too deeply")
    except (regex.error, ArithmeticError, LookupError, TypeError, ValueError) as exc:
        # All but the first are what the library raises for patterns that it did not foresee.
        yield Problem(where, f"is not a regular expression: {exc}")


def _check_few_shot(step: StepDef, where: str) -> Iterator[Problem]:
    messages = step.prompt.meta.get("messages")
    if messages is None:
        return
    if not isinstance(messages, list):
        yield Problem(f"{where}.prompt.meta.messages", "expected a list of {role, content}")
        return
    for index, message in enumerate(messages):
        good = (
            isinstance(message, dict)
            and message.keys() == {"role", "content"}
            and message["role"] in ("user", "assistant", "system")
            and isinstance(message["content"], str)
        )
        if not good:
            words = "expected {role: user, assistant or system, content: a text}"
            yield Problem(f"{where}.prompt.meta.messages[{index}]", words)


def find_cycle(dependencies: dict[StepId, tuple[StepId, ...]]) -> list[StepId]:
    """The steps of one cycle, the first repeated at the end; empty when there is none. Unknown ids are passed over."""
    known = {
        step_id: tuple(dependency for dependency in wanted if dependency in dependencies)
        for step_id, wanted in dependencies.items()
    }
    done = set(_topological(known))
    left = [step_id for step_id in known if step_id not in done]
    if not left:
        return []
    trail: dict[StepId, None] = {}
    current = left[0]
    while current not in trail:
        trail[current] = None
        current = next(dependency for dependency in known[current] if dependency not in done)
    path = list(trail)
    return [*path[path.index(current) :], current]


def _topological(dependencies: dict[StepId, tuple[StepId, ...]]) -> Iterator[StepId]:
    """Kahn's algorithm; steps of a cycle, or behind one, never come."""
    waiting = {step_id: len(set(wanted)) for step_id, wanted in dependencies.items()}
    dependents: dict[StepId, list[StepId]] = {step_id: [] for step_id in dependencies}
    for step_id, wanted in dependencies.items():
        for dependency in set(wanted):
            dependents[dependency].append(step_id)
    ready = deque(step_id for step_id, count in waiting.items() if count == 0)
    while ready:
        step_id = ready.popleft()
        yield step_id
        for dependent in dependents[step_id]:
            waiting[dependent] -= 1
            if waiting[dependent] == 0:
                ready.append(dependent)
