"""Pipeline definitions from values, files and directories, checked down to the last template."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline_engine.decoding import try_decode
from pipeline_engine.documents import SUFFIXES, parse_document
from pipeline_engine.errors import InvalidRequestError, Problem
from pipeline_engine.hidden_headers import hidden_headers
from pipeline_engine.models import (
    MapOperation,
    PipelineDef,
    ProviderKind,
    ProviderProfile,
    StepDef,
    StepKind,
    StepMode,
)
from pipeline_engine.pipeline import Graph, check, input_step
from pipeline_engine.providers.addresses import normalise_base_uri
from pipeline_engine.steps.schemas import check_schema
from pipeline_engine.steps.transforms import check_jmespath
from pipeline_engine.suggestions import known_names
from pipeline_engine.templates import Templates

log = logging.getLogger(__name__)

_NAMES = frozenset({"sources", "options", "job", "step", "previous"})
_EVERY_NAME = _NAMES | {"source", "item", "index", "items"}

#: The fields of a step that no check of another field has to do with.
_INDEPENDENT = (
    "name", "prompt", "export", "export_tag", "when", "run_if_skipped", "timeout_s", "retry", "on_error",
    "max_concurrency", "on_item_error",
)  # fmt: skip

_FITTING_KINDS = {
    StepKind.LLM: (ProviderKind.OPENAI, ProviderKind.OLLAMA),
    StepKind.IMAGE: (ProviderKind.IMAGE,),
    StepKind.MAP: (ProviderKind.LOCAL_TOOL,),
    StepKind.REDUCE: (ProviderKind.LOCAL_TOOL,),
    StepKind.CUSTOM: (ProviderKind.LOCAL_TOOL,),
}

_PROFILE_ONLY = re.compile(r"(?:^|\.)steps\[\d+\]\.provider_override\.(api_key|command)$")

_OR_IN_A_FILE = "or put the definition into a folder of pipelines_dir"


def decode_definition(value: object, *, path: str = "", source: str | None = None) -> PipelineDef:
    """The value as a definition, not yet checked. Raises InvalidRequestError with every problem."""
    definition, problems = try_decode(value, PipelineDef, path=path)
    if definition is None:
        raise InvalidRequestError(explain_overrides(problems), source=source)
    return definition


def explain_overrides(problems: Iterable[Problem]) -> list[Problem]:
    """The problems of decoding, those with an override that only a profile may set said in words of their own."""
    explained = []
    for problem in problems:
        match = _PROFILE_ONLY.search(problem.path)
        message = f"{match[1]} cannot be set in a step: set it in the profile" if match else problem.message
        explained.append(Problem(problem.path, message, problem.line))
    return explained


@dataclass(frozen=True, slots=True, kw_only=True)
class DefinitionChecker:
    """Finds what is wrong with definitions.

    `profiles` gives the profile of an id, `profile_ids` all ids; `handlers` knows a handler's name.
    """

    templates: Templates
    profiles: Callable[[str], ProviderProfile | None]
    profile_ids: Callable[[], Iterable[str]]
    handlers: Callable[[str], bool]

    def decode(self, value: object, *, path: str = "") -> tuple[PipelineDef | None, list[Problem]]:
        """The value as a definition, not yet checked; or None and all problems that can be told of it: those of its form,
        and what `check` finds in the rest, as far as that has nothing to do with what is left out.
        """
        definition, problems = try_decode(value, PipelineDef, path=path)
        if definition is not None:
            return definition, problems
        problems = explain_overrides(problems)
        remains = _remains(value, path)
        if remains is not None:
            problems += self._check(remains.definition, path=path, incomplete=remains.incomplete)
        return None, problems

    def check(self, definition: PipelineDef, *, path: str = "") -> list[Problem]:
        """Every problem of the definition; `path` is where it stands in its document."""
        prefix = f"{path}." if path else ""
        problems = self._check(definition, path=path)
        for index, step in enumerate(definition.steps):
            problems += hidden_headers(step, f"{prefix}steps[{index}]")
        return problems

    def _check(self, definition: PipelineDef, *, path: str, incomplete: Collection[int] = ()) -> list[Problem]:
        prefix = f"{path}." if path else ""
        problems = check(definition, path=path, incomplete=incomplete)
        if definition.options_schema is not None:
            message = check_schema(definition.options_schema)
            if message is not None:
                problems.append(Problem(f"{prefix}options_schema", message))
        visible = _visible_steps(definition, any_step=bool(incomplete))
        for index, step in enumerate(definition.steps):
            where = f"{prefix}steps[{index}]"
            problems += self._check_references(step, where)
            problems += self._check_texts(step, where, visible, any_name=index in incomplete)
        return problems

    def check_sent(self, definition: PipelineDef, *, path: str = "") -> list[Problem]:
        """What is wrong with a definition that comes over HTTP, besides what `check` finds."""
        problems = self.check_tool_use(definition, path=path)
        if "/" in definition.type:
            where = f"{path}.type" if path else "type"
            problems.insert(0, Problem(where, "must not hold a /: it stands in the addresses of the pipeline"))
        return problems

    def check_tool_use(self, definition: PipelineDef, *, path: str = "") -> list[Problem]:
        """What a definition of a client may not say of tools.

        They are defined in files: a variable (BASH_ENV, LD_PRELOAD, PATH) or a directory can make another program of one.
        """
        prefix = f"{path}." if path else ""
        problems: list[Problem] = []
        for index, step in enumerate(definition.steps):
            problems += self._check_tool_use(step, f"{prefix}steps[{index}].provider_override")
        return problems

    def _check_tool_use(self, step: StepDef, where: str) -> Iterator[Problem]:
        profile, override = self._profile_of(step), step.provider_override
        if override is None or profile is None or profile.kind is not ProviderKind.LOCAL_TOOL:
            return
        env, cwd = f"extra.env of the profile {profile.id!r}", f"extra.cwd of the profile {profile.id!r}"
        for name in override.env:
            if name not in profile.extra.env:
                words = f"{env} does not name it: name it there, {_OR_IN_A_FILE}"
                yield Problem(f"{where}.env.{name}", f"cannot be set over HTTP, as {words}")
        if override.cwd is not None and override.cwd != profile.extra.cwd:
            yield Problem(f"{where}.cwd", f"cannot be set over HTTP: set {cwd}, {_OR_IN_A_FILE}")

    def _check_references(self, step: StepDef, where: str) -> Iterator[Problem]:
        handler = step.config.handler
        if handler is not None and not self.handlers(handler):
            yield Problem(f"{where}.config.handler", f"there is no handler {handler!r}")
        if step.provider_profile_id is None:
            return
        profile = self._profile_of(step)
        here = f"{where}.provider_profile_id"
        if profile is None:
            known = known_names(step.provider_profile_id, self.profile_ids())
            yield Problem(here, f"there is no provider profile {step.provider_profile_id!r}; {known}")
        elif profile.kind not in _FITTING_KINDS[step.kind]:
            fitting = " or ".join(_FITTING_KINDS[step.kind])
            message = f"the profile {profile.id!r} is of the kind {profile.kind}; a step of the kind {step.kind}"
            yield Problem(here, f"{message} needs one of the kind {fitting}")
        base_uri = None if step.provider_override is None else step.provider_override.base_uri
        if base_uri is not None and (profile is None or profile.kind is not ProviderKind.LOCAL_TOOL):
            yield from _problem(f"{where}.provider_override.base_uri", _address_fault(base_uri))

    def _check_texts(
        self, step: StepDef, where: str, visible: Callable[[StepDef], Collection[str]], *, any_name: bool
    ) -> Iterator[Problem]:
        """`any_name`: which names the step has cannot be told, but what is no name anywhere is wrong here too."""
        config = step.config
        templates = list(_templates_of(step))
        expressions = []
        if step.when is not None:
            expressions.append(("when", step.when, _NAMES))
        if config.expression is not None and config.map is MapOperation.FILTER:
            expressions.append(("config.expression", config.expression, _operation_names(step)))
        of_tool = list(self._texts_of_tool(step))
        steps = visible(step) if templates or expressions or of_tool else ()
        for key, text, own_names in templates:
            names = _EVERY_NAME if any_name else own_names
            for message in self.templates.check_template(text, names=names, steps=steps):
                yield Problem(f"{where}.{key}", message)
        for key, text, own_names in expressions:
            names = _EVERY_NAME if any_name else own_names
            for message in self.templates.check_expression(text, names=names, steps=steps):
                yield Problem(f"{where}.{key}", message)
        for key, place, text in of_tool:
            names = _EVERY_NAME if any_name else _item_names(step)
            for message in self.templates.check_template(text, names=names, steps=steps):
                yield Problem(f"{where}.{key}", f"{place}{message}")
        if config.expression is not None and config.map is MapOperation.SELECT:
            yield from _problem(f"{where}.config.expression", check_jmespath(config.expression))
        if config.by is not None:
            yield from _problem(f"{where}.config.by", check_jmespath(config.by))
        if config.json_schema is not None:
            yield from _problem(f"{where}.config.json_schema", check_schema(config.json_schema))

    def options_read(self, definition: PipelineDef) -> set[str] | None:
        """The options that the definition declares or reads; None if it may read any."""
        declared = definition.options_schema.get("properties") if isinstance(definition.options_schema, dict) else None
        read: set[str | None] = {"max_tokens", *(declared if isinstance(declared, dict) else ())}
        for step in definition.steps:
            if step.config.handler is not None:
                return None  # it is given all of them
            for text, is_expression in self._texts_with_options(step):
                read |= self.templates.keys_read(text, "options", is_expression=is_expression)
        return None if None in read else {name for name in read if name is not None}

    def _texts_with_options(self, step: StepDef) -> Iterator[tuple[str, bool]]:
        """Every text of the step that can read options, and whether it is an expression."""
        texts = [text for _, text, _ in _templates_of(step)]
        for text in (*texts, *(text for _, _, text in self._texts_of_tool(step))):
            yield text, False
        if step.when is not None:
            yield step.when, True
        if step.config.expression is not None and step.config.map is MapOperation.FILTER:
            yield step.config.expression, True

    def _profile_of(self, step: StepDef) -> ProviderProfile | None:
        return None if step.provider_profile_id is None else self.profiles(step.provider_profile_id)

    def _texts_of_tool(self, step: StepDef) -> Iterator[tuple[str, str, str]]:
        """Each template that the step's tool is started with: the key that brings it, where it stands there, its text."""
        profile = self._profile_of(step)
        if profile is None or profile.kind is not ProviderKind.LOCAL_TOOL:
            return
        override = {} if step.provider_override is None else step.provider_override.env
        for index, text in enumerate(profile.extra.command):
            yield "provider_profile_id", f"extra.command[{index}] of the profile: ", text
        for name, text in profile.extra.env.items():
            if name not in override:
                yield "provider_profile_id", f"extra.env.{name} of the profile: ", text
        for name, text in override.items():
            yield f"provider_override.env.{name}", "", text


def _templates_of(step: StepDef) -> Iterator[tuple[str, str, frozenset[str]]]:
    """Where each template of the step stands, its text, and the names that it may use."""
    names = _item_names(step)
    if step.prompt.system is not None:
        yield "prompt.system", step.prompt.system, names
    if step.prompt.user is not None:
        yield "prompt.user", step.prompt.user, names
    turns = step.prompt.meta.get("messages")
    for index, turn in enumerate(turns if isinstance(turns, list) else ()):
        content = turn.get("content") if isinstance(turn, dict) else None
        if isinstance(content, str):
            yield f"prompt.meta.messages[{index}].content", content, names
    if step.config.template is not None:
        yield "config.template", step.config.template, _operation_names(step)


def _problem(path: str, message: str | None) -> Iterator[Problem]:
    if message is not None:
        yield Problem(path, message)


def _address_fault(base_uri: str) -> str | None:
    try:
        normalise_base_uri(base_uri)
    except ValueError as exc:
        return str(exc).removeprefix("base_uri ")
    return None


def _item_names(step: StepDef) -> frozenset[str]:
    if step.mode is StepMode.SINGLE:
        return _NAMES
    # Shards of the sources are called either way; the items of another step are no sources.
    return _NAMES | ({"source", "item", "index"} if input_step(step) is None else {"item", "index"})


def _operation_names(step: StepDef) -> frozenset[str]:
    """The names for the templates and expressions in `config`: a map sees each item, a reduce all of them."""
    return _item_names(step) | {"items" if step.kind is StepKind.REDUCE else "item"}


def _visible_steps(definition: PipelineDef, *, any_step: bool = False) -> Callable[[StepDef], Collection[str]]:
    """What `previous` holds for a step. In a graph that is broken itself, every step: that is told once already."""
    ids = [step.id for step in definition.steps]
    known = set(ids)
    if any_step:
        return lambda _: known
    sound = len(known) == len(ids) and all(known.issuperset(step.depends_on) for step in definition.steps)
    if sound and not any(step.depends_on for step in definition.steps):
        return lambda _: ()
    graph = Graph(definition) if sound else None
    if graph is None or len(graph.order) < len(ids):
        return lambda _: known
    return lambda step: graph.ancestors(step.id)


# --- what is left of a definition that did not decode -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Remains:
    """A definition without what is not of the right form, and the steps that could be others with it."""

    definition: PipelineDef
    incomplete: set[int]


def _remains(value: object, path: str) -> _Remains | None:
    """None where the steps cannot be told apart: every check of one could be wrong then."""
    raw_steps = value.get("steps") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(raw_steps, list):
        return None
    steps: list[StepDef] = []
    incomplete: set[int] = set()
    for index, raw in enumerate(raw_steps):
        where = f"{path}.steps[{index}]" if path else f"steps[{index}]"
        step, problems = try_decode(raw, StepDef, path=where)
        if step is None and isinstance(raw, dict):
            # A list goes as a whole, as the places in it have a meaning.
            refused = {problem.path[len(where) :].partition("[")[0] for problem in problems}
            if any(place.split(".")[1] not in _INDEPENDENT for place in refused):
                incomplete.add(index)
            step, _ = try_decode(_without(raw, refused), StepDef)
            if step is None:  # what kind it is cannot be told
                incomplete.add(index)
                step, _ = try_decode({"id": raw.get("id"), "kind": StepKind.CUSTOM.value}, StepDef)
        if step is None:
            return None
        steps.append(step)
    schema = value.get("options_schema")
    definition = PipelineDef(type="", steps=steps, options_schema=schema if isinstance(schema, dict) else None)
    return _Remains(definition, incomplete)


def _without(value: object, refused: Collection[str], place: str = "") -> object:
    """The value without what stands at the places (`.config.by`) that are refused."""
    if not isinstance(value, dict):
        return value
    return {
        key: _without(part, refused, f"{place}.{key}") for key, part in value.items() if f"{place}.{key}" not in refused
    }


# --- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoadedDefinition:
    """A checked definition, the file that it comes from, and its line there, where that is known."""

    definition: PipelineDef
    file: Path
    line: int | None = None


@dataclass(frozen=True, slots=True)
class LoadedDirectory:
    """What directories hold: the good definitions by their type, and each bad file with its error."""

    definitions: dict[str, LoadedDefinition] = field(default_factory=dict)
    errors: dict[Path, InvalidRequestError] = field(default_factory=dict)


def load_definitions(file: Path, *, checker: DefinitionChecker) -> list[LoadedDefinition]:
    """The definitions of a file: one, a list of them, or `pipelines` with a list.

    Raises InvalidRequestError, with the file as its source, with the problems of all of them; also when the file
    cannot be read.
    """
    name = str(file)
    try:
        document = parse_document(file.read_bytes(), name=name)
    except OSError as exc:
        raise InvalidRequestError([Problem("", f"cannot be read: {exc.strerror}")], source=name) from exc
    loaded: dict[str, LoadedDefinition] = {}
    problems: list[Problem] = []
    for path, value in _definitions_in(document.value, problems):
        definition, found = checker.decode(value, path=path)
        if definition is None:
            problems += found
            continue
        problems += checker.check(definition, path=path)
        if definition.type in loaded:
            here = f"{path}.type" if path else "type"
            problems.append(Problem(here, f"the type {definition.type!r} is defined twice in this file"))
        loaded[definition.type] = LoadedDefinition(definition, file, document.line_of(path))
    if problems:
        raise InvalidRequestError(document.locate(problems), source=name)
    return list(loaded.values())


def _definitions_in(value: object, problems: list[Problem]) -> list[tuple[str, object]]:
    """Each definition with its path."""
    path = ""
    if isinstance(value, dict) and "pipelines" in value:
        problems += [Problem(key, "unknown key beside pipelines") for key in value if key != "pipelines"]
        path, value = "pipelines", value["pipelines"]
        if not isinstance(value, list):
            problems.append(Problem(path, "expected a list of definitions"))
            return []
    if isinstance(value, list):
        return [(f"{path}[{index}]", part) for index, part in enumerate(value)]
    if value is None:
        problems.append(Problem("", "the file holds no definition"))
        return []
    return [(path, value)]


def load_directories(paths: Iterable[Path], *, checker: DefinitionChecker) -> LoadedDirectory:
    """All definitions of the files in the directories, in the order of their names; a bad file hides no other.

    A type that an earlier file has defined makes the later file a bad one.
    """
    result = LoadedDirectory()
    for directory in paths:
        try:
            files = sorted(entry for entry in directory.iterdir() if _is_definition_file(entry))
        except OSError as exc:
            problem = Problem("", f"cannot be read: {exc.strerror}")
            result.errors[directory] = InvalidRequestError([problem], source=str(directory))
            continue
        for file in files:
            try:
                loaded = load_definitions(file, checker=checker)
                _refuse_known_types(loaded, result.definitions)
            except InvalidRequestError as exc:
                result.errors[file] = exc
            except Exception as exc:
                # A fault of ours or of a library: whatever a file holds, it costs neither the daemon nor other files.
                log.exception("%s cannot be checked", file)
                problem = Problem("", f"cannot be checked: {type(exc).__name__}: {exc}")
                result.errors[file] = InvalidRequestError([problem], source=str(file))
            else:
                result.definitions.update({one.definition.type: one for one in loaded})
    return result


def _is_definition_file(entry: Path) -> bool:
    # Editors keep their temporary files beside, hidden; reading a fifo would wait for ever.
    if entry.suffix.lower() not in SUFFIXES or entry.name.startswith("."):
        return False
    # A link that cannot be followed is a file that cannot be read: it may lead somewhere again. Unlike Path's, these say
    # no where looking at the target fails: that must not hide the other files.
    return os.path.isfile(entry) or (entry.is_symlink() and not os.path.exists(entry))  # noqa: PTH110, PTH113


def _refuse_known_types(loaded: list[LoadedDefinition], known: dict[str, LoadedDefinition]) -> None:
    problems = [
        Problem(
            "type",
            f"the type {one.definition.type!r} is already defined in {known[one.definition.type].file}",
            one.line,
        )
        for one in loaded
        if one.definition.type in known
    ]
    if problems:
        raise InvalidRequestError(problems, source=str(loaded[0].file))
