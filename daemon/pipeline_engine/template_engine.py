"""One MiniJinja environment, set up for our templates."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import minijinja

from pipeline_engine import template_source
from pipeline_engine.errors import TemplateError
from pipeline_engine.jsontext import JsonTextError, dumps_compact, loads_strict
from pipeline_engine.template_values import ObjectView, ViewLog, is_small, unwrap, view

INLINE_JSON = 50_000  # parts and characters of a JSON value that are printed on the event loop
COMPILED_TEMPLATES = 512
MAX_FILTER_OUTPUT = 10_000_000  # characters; filters written in Python are outside the fuel
MAX_INDENT = 16
_TOO_MUCH_WORK = "needs more work than limits.template_fuel allows"
_BRACES = re.compile(r"\{\{|\{%")
_NO_ATTRIBUTE_NAME = re.compile(r"[\s/>=]")


@dataclass(frozen=True, slots=True)
class Source:
    """What is known about a source once it has been looked at; `refused` says why it cannot be used at all."""

    text: str
    is_expression: bool
    name: str
    tags: tuple[template_source.Tag, ...]
    refused: str | None
    undeclared: frozenset[str]
    tolerates_undefined: bool
    can_snowball: bool


class FuelSpentError(TemplateError):
    """The rendering used up its fuel."""


class TooLargeInlineError(TemplateError):
    """The rendering would print a JSON value that is too large for the event loop."""


class BrokenEngineError(TemplateError):
    """MiniJinja panicked; its environment must not be used again."""


class _FilterError(Exception):
    """A filter of ours cannot use what it was given."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class TemplateEngine:
    """Compiles and runs. It holds a lock while it renders and has state of one rendering: for one thread at a time."""

    def __init__(self) -> None:
        self._log = ViewLog()
        self._inline = False
        self._tolerates_undefined = False
        self._fuel_left = 0  # for the filters that are written here
        self._compiled: OrderedDict[str, None] = OrderedDict()
        self._env = minijinja.Environment(
            undefined_behavior="strict",
            keep_trailing_newline=True,
            finalizer=self._printed,
            filters={
                "center": self._center,
                "forceescape": self._forceescape,
                "fromjson": self._fromjson,
                "join": self._join,
                "string": self._string,
                "tojson": self._tojson,
                "truncate": self._truncate,
                "wordcount": self._wordcount,
                "xmlattr": self._xmlattr,
            },
        )
        self._env.remove_global("debug")
        self._globals = frozenset(self._env.globals)

    def analyse(self, text: str, *, is_expression: bool) -> Source:
        """Look at a source; never raises."""
        tags = [template_source.expression_tag(text)] if is_expression else template_source.template_tags(text)
        refused = template_source.refused(tags)
        undeclared: set[str] = set()
        if refused is None:
            try:
                undeclared = self._undeclared(text, tags, is_expression=is_expression)
            except minijinja.TemplateError as exc:
                refused = _translated(exc).message
                if is_expression and _BRACES.search(text):
                    refused += "; an expression is without {{ }} and {% %}"
        return Source(
            text=text,
            is_expression=is_expression,
            # A template could include another by its name; only who has the other's text knows its hash.
            name=hashlib.sha256(text.encode("utf-8", "replace")).hexdigest(),
            tags=tuple(tags),
            refused=refused,
            undeclared=frozenset(undeclared - self._globals),
            tolerates_undefined=template_source.tolerates_undefined(tags),
            can_snowball=template_source.can_snowball(tags),
        )

    def _undeclared(self, text: str, tags: Sequence[template_source.Tag], *, is_expression: bool) -> set[str]:
        if is_expression:
            self._compile_expression(text)
            text = template_source.without_slices(text, tags)
            return self._env.undeclared_variables_in_str("{{ " + text + "\n}}")
        undeclared = self._env.undeclared_variables_in_str(text)
        whole = template_source.without_slices(text, tags)
        return undeclared if whole == text else self._env.undeclared_variables_in_str(whole)

    def _compile_expression(self, text: str) -> None:
        """The binding compiles expressions only to run them, so it runs out of fuel at once."""
        self._env.fuel = 0
        try:
            self._env.eval_expr(text)
        except minijinja.TemplateError as exc:
            if exc.kind == "SyntaxError":
                raise

    def problems(self, source: Source, names: Collection[str], steps: Collection[str]) -> list[str]:
        """What a source that compiles uses though it does not exist: variables, steps, filters, tests."""
        tags = source.tags
        found: list[tuple[int, str]] = []
        for name in source.undeclared - set(names):
            message = f"{name!r} is not defined here; known: {', '.join(sorted(names))}"
            found.append((template_source.line_of(tags, name), message))
        if "previous" in source.undeclared:
            found += template_source.previous_problems(tags, steps)
        for line, name in template_source.filters_used(tags):
            if not self._exists(name, "filter"):
                found.append((line, f"there is no filter {name!r}"))
        for line, name in template_source.tests_used(tags):
            if not self._exists(name, "test"):
                found.append((line, f"there is no test {name!r}"))
        if not source.is_expression:
            for line, word in template_source.other_templates_used(tags):
                found.append((line, f"{word} is not available: a template stands alone"))
        return [f"line {line}: {message}" for line, message in dict.fromkeys(sorted(found))]

    def _exists(self, name: str, kind: str) -> bool:
        self._env.fuel = None
        return bool(self._env.eval_expr(f"name is {kind}", name=name))

    def run(self, source: Source, context: Mapping[str, object], *, fuel: int, inline: bool) -> Any:
        """The text of a template, or the plain value of an expression. Raises TemplateError.

        `inline`: on the event loop, so TooLargeInlineError instead of printing a large JSON value.
        """
        self._log.missing = None
        self._log.failure = None
        self._inline = inline
        self._tolerates_undefined = source.tolerates_undefined
        self._env.fuel = self._fuel_left = fuel
        views = {name: view(context[name], self._log) for name in source.undeclared if name in context}
        try:
            value = self._evaluate(source.text, views) if source.is_expression else self._render(source, views)
        except minijinja.TemplateError as exc:
            raise _translated(exc) from exc
        except _FilterError as exc:
            line = next((line for line, name in template_source.filters_used(source.tags) if name == exc.name), 1)
            raise TemplateError(f"line {line}: {exc}", details={"line": line}) from exc
        except AttributeError as exc:  # raised by a view that is asked for a method
            line = template_source.line_of_attribute(source.tags, str(exc))
            raise TemplateError(f"line {line}: there is no method {exc}", details={"line": line}) from exc
        except TypeError as exc:
            raise TemplateError("a filter or method got arguments that it does not take") from exc
        except JsonTextError as exc:
            raise TemplateError(f"a value {exc}") from exc
        except RecursionError as exc:
            raise TemplateError("a value is nested too deeply") from exc
        except BaseException as exc:
            if type(exc).__name__ == "PanicException":  # of the binding; it cannot be imported
                raise BrokenEngineError("the template engine failed") from exc
            raise
        if self._log.failure is not None:
            raise TemplateError(f"a value {self._log.failure}") from self._log.failure
        return value

    def _render(self, source: Source, views: dict[str, Any]) -> str:
        if source.name in self._compiled:
            self._compiled.move_to_end(source.name)
        else:
            self._env.add_template(source.name, source.text)
            self._compiled[source.name] = None
            if len(self._compiled) > COMPILED_TEMPLATES:
                self._env.remove_template(self._compiled.popitem(last=False)[0])
        return self._env.render_template(source.name, **views)

    def _evaluate(self, text: str, views: dict[str, Any]) -> Any:
        value = self._env.eval_expr(text, **views)
        if value is None:
            # None stands for undefined too. Joining with a text tells them apart: undefined is an error there.
            self._env.eval_expr(f"'' ~ ({text}\n)", **views)
        return unwrap(value)

    # --- called by the templates --------------------------------------------------------------------------------------

    def _printed(self, value: object) -> Any:
        """The finalizer: how a value prints. Whole numbers and texts print as MiniJinja does it."""
        if isinstance(value, str) or type(value) is int:
            return NotImplemented
        return self._json(value)

    def _json(self, value: object, indent: int | None = None) -> str:
        if self._inline and not is_small(value, INLINE_JSON):
            raise TooLargeInlineError("too large for the event loop")
        return dumps_compact(value, default=unwrap, indent=indent)

    def _refuse_undefined(self, value: object, name: str) -> None:
        """Filters written in Python get None for an undefined value; the views know whether it was that."""
        if value is None and not self._tolerates_undefined and self._log.missing is not None:
            raise _FilterError(name, f"{self._log.missing} is undefined, where the filter {name} is used")

    def _text(self, value: object, name: str) -> str:
        self._refuse_undefined(value, name)
        if not isinstance(value, str):
            raise _FilterError(name, f"the filter {name} needs a text")
        return value

    def _spend(self, work: int) -> None:
        self._fuel_left -= work
        if self._fuel_left < 0:
            raise FuelSpentError(_TOO_MUCH_WORK)

    def _string(self, value: object) -> str:
        """The text that a value prints as; MiniJinja's own filter writes booleans and null as Python does."""
        if isinstance(value, str):
            return value
        self._refuse_undefined(value, "string")
        return self._json(value)

    def _join(self, value: object, separator: object = "", attribute: object = None) -> str:
        """Jinja2's join, of what the elements print as."""
        self._refuse_undefined(value, "join")
        if value is not None and not isinstance(value, str | Mapping | Sequence | ObjectView):
            raise _FilterError("join", "the filter join needs a list")
        parts = []
        between = self._string(separator)
        for element in value or ():
            part = element if attribute is None else self._attribute(element, self._string(attribute))
            self._refuse_undefined(part, "join")
            parts.append(self._string(part))
            self._spend(1 + len(parts[-1]) + len(between))
        return between.join(parts)

    @staticmethod
    def _attribute(element: object, path: str) -> Any:
        for key in path.split("."):
            try:
                element = element[int(key) if key.isdecimal() else key]  # type: ignore[index]  # TypeError, if it is none
            except (KeyError, IndexError, TypeError) as exc:
                raise _FilterError("join", f"{path} is undefined, where the filter join is used") from exc
        return element

    def _forceescape(self, value: object) -> str:
        """Jinja2's forceescape: what was escaped before is escaped again."""
        return minijinja.escape(str.__str__(self._string(value)))

    def _xmlattr(self, value: object, autospace: object = True) -> str:  # noqa: FBT002 - as Jinja2 has it
        """Jinja2's xmlattr: the entries as attributes of an element, without those that are null."""
        self._refuse_undefined(value, "xmlattr")
        if not isinstance(value, dict | ObjectView):
            raise _FilterError("xmlattr", "the filter xmlattr needs an object")
        attributes = []
        for key, part in value.items():
            name = self._string(key)
            if not name or _NO_ATTRIBUTE_NAME.search(name):
                raise _FilterError("xmlattr", f"the filter xmlattr cannot make an attribute of the key {name!r}")
            if part is not None:
                attributes.append(f'{minijinja.escape(name)}="{minijinja.escape(self._string(part))}"')
        text = " ".join(attributes)
        return minijinja.safe(f" {text}" if text and autospace else text)

    def _tojson(self, value: object, indent: object = None) -> str:
        self._refuse_undefined(value, "tojson")
        if indent is not None and not (isinstance(indent, int) and 0 <= indent <= MAX_INDENT):
            raise _FilterError("tojson", f"the filter tojson takes an indent of 0 to {MAX_INDENT}")
        return self._json(value, indent or None)

    def _fromjson(self, value: object) -> Any:
        try:
            return view(loads_strict(self._text(value, "fromjson")), self._log)
        except JsonTextError as exc:
            raise _FilterError("fromjson", f"the filter fromjson got no JSON: {exc}") from exc

    def _wordcount(self, value: object) -> int:
        return len(self._text(value, "wordcount").split())

    def _center(self, value: object, width: object = 80) -> str:
        if not isinstance(width, int) or width > MAX_FILTER_OUTPUT:
            raise _FilterError("center", f"the filter center takes a width up to {MAX_FILTER_OUTPUT}")
        return self._text(value, "center").center(width)

    def _truncate(
        self,
        value: object,
        length: object = 255,
        killwords: object = None,
        end: object = "...",
        leeway: object = 5,
    ) -> str:
        """Jinja2's truncate: cut at a word's end unless `killwords`; a text that is `leeway` longer stays."""
        text = self._text(value, "truncate")
        if not isinstance(length, int) or not isinstance(leeway, int) or not isinstance(end, str):
            raise _FilterError("truncate", "the filter truncate takes a length, killwords, an end and a leeway")
        if len(text) <= length + leeway:
            return text
        kept = text[: max(0, length - len(end))]
        return (kept if killwords else kept.rsplit(" ", 1)[0]) + end


def _translated(exc: minijinja.TemplateError) -> TemplateError:
    """MiniJinja's error in plain words: the line, the culprit."""
    details: dict[str, Any] = {} if exc.line is None else {"line": exc.line}
    place = "" if exc.line is None else f"line {exc.line}: "
    if exc.kind == "OutOfFuel":
        return FuelSpentError(place + _TOO_MUCH_WORK, details=details)
    words = exc.detail
    if words is None:
        words = exc.message.split(" (in ")[0]
        if (culprit := _culprit(exc)) is not None:
            words = f"{words}: {culprit}"
    return TemplateError(place + words.replace("`", ""), details=details)


def _culprit(exc: minijinja.TemplateError) -> str | None:
    """The piece of the source that the error is about."""
    if exc.range is None or exc.template_source is None:
        return None
    start, end = exc.range
    return exc.template_source.encode()[start:end].decode(errors="ignore").strip() or None
