"""Translates the Go templates of version 0.2 into ours, and lists what it could not translate."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_ACTION = re.compile(
    r"\{\{(?P<left>- )?(?P<text>(?:/\*.*?\*/|\"(?:\\.|[^\"\\])*\"|`[^`]*`|.)*?)(?P<right> -)?\}\}", re.DOTALL
)
_TOKEN = re.compile(
    r'\s*("(?:\\.|[^"\\])*"|`[^`]*`|:=|\$?[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*|\$(?:\.[A-Za-z_]\w*)+|\$'
    r"|(?:\.[A-Za-z_]\w*)+|\.|-?\d+(?:\.\d+)?|[()|,=])"
)
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_FILTERS = {
    "len": "length", "lower": "lower", "upper": "upper", "trim": "trim", "title": "title", "json": "tojson",
    "toJson": "tojson", "toJSON": "tojson", "html": "escape", "urlquery": "urlencode",
}  # fmt: skip
_SINGULAR = {"sources": "source", "items": "item"}
_JINJA_MARK = re.compile(r"\{[%#]")


class _Untranslatable(Exception):  # noqa: N818 - never leaves this module
    """An action for which there is no certain translation."""


@dataclass(slots=True)
class _Block:
    """An open range, with or if: its end, what the dot means in it, and the names that are known outside."""

    kind: str
    end: str
    dot: str
    names: dict[str, str]


@dataclass(slots=True)
class Conversion:
    """A template in our syntax. `problems` names each action that stands in it untranslated, as a comment."""

    text: str
    problems: list[str] = field(default_factory=list)


def convert_template(text: str) -> Conversion:
    """The Go template in Jinja's syntax.

    Translated are fields (`.Sources`, `.Source.Content`), range, with, if, variables, comments, the comparisons, and the
    functions that have a filter of ours. `.MaxTokens` becomes `max_tokens`.
    """
    return _Converter().convert(text)


class _Converter:
    def __init__(self) -> None:
        self._dot = ""  # what `.` is: an expression of ours; empty at the top, where names stand alone
        self._names: dict[str, str] = {}  # the variables of the template, with their names here
        self._blocks: list[_Block] = []
        self._problems: list[str] = []

    def convert(self, text: str) -> Conversion:
        parts: list[str] = []
        position = 0
        for match in _ACTION.finditer(text):
            parts.append(_plain(text[position : match.start()]))
            position = match.end()
            parts.append(self._action(match))
        parts.append(_plain(text[position:]))
        for block in reversed(self._blocks):
            self._problems.append(f"{{{{{block.kind}}}}} has no {{{{end}}}}")
        return Conversion("".join(parts), self._problems)

    def _action(self, match: re.Match[str]) -> str:
        left, right = "-" if match["left"] else "", "-" if match["right"] else ""
        text = match["text"].strip()
        if text.startswith("/*"):
            return f"{{#{left} {text[2:].removesuffix('*/').strip()} {right}#}}"
        try:
            tag, body = self._translate(text)
        except _Untranslatable as exc:
            self._problems.append(f"{match[0]}: {exc}")
            return f"{{# not converted: {match[0].strip('{}').replace('#}', '')} #}}"
        opening, closing = ("{%", "%}") if tag else ("{{", "}}")
        return f"{opening}{left} {body} {right}{closing}"

    def _translate(self, text: str) -> tuple[bool, str]:
        """Whether it is a tag, and what stands in it."""
        word, _, rest = text.partition(" ")
        match word:
            case "range":
                return True, self._range(rest.strip())
            case "if":
                condition = self._expression(rest)
                self._open("if", "endif")
                return True, f"if {condition}"
            case "with":
                return True, self._with(rest)
            case "else":
                return True, self._else(rest.strip())
            case "end":
                return True, self._end()
            case "template" | "define" | "block" | "break" | "continue":
                raise _Untranslatable(f"{word} has no counterpart")
        if re.match(r"\$\w+\s*=", text) and self._blocks:
            raise _Untranslatable("an assignment in a block does not reach beyond it here")
        if assigned := re.match(r"\$(\w+)\s*:?=\s*(.*)", text, re.DOTALL):
            value = self._expression(assigned[2])
            name = self._new_name(assigned[1])
            self._names[assigned[1]] = name
            return True, f"set {name} = {value}"
        return False, self._expression(text)

    def _range(self, text: str) -> str:
        index, element = None, None
        if declared := re.match(r"(?:\$(\w+)\s*,\s*)?\$(\w+)\s*:=\s*(.*)", text, re.DOTALL):
            index, element, text = declared[1], declared[2], declared[3]
        value = self._expression(text)
        base = element or _SINGULAR.get(value.rpartition(".")[2], "element")
        self._open("range", "endfor")
        name = self._new_name(base)
        self._dot = name
        if element is not None:
            self._names[element] = name
        if index is None or index == "_":
            return f"for {name} in {value}"
        # A name of its own: `loop` means the innermost loop.
        self._names[index] = number = self._new_name(index)
        return f"for {name} in {value} %}}{{% set {number} = loop.index0"

    def _with(self, text: str) -> str:
        declared = re.match(r"\$(\w+)\s*:=\s*(.*)", text, re.DOTALL)
        value = self._expression(declared[2] if declared else text)
        self._open("with", "endif")
        # A filter in it must not swallow what follows the dot.
        self._dot = value if re.fullmatch(r"[\w.]+", value) else f"({value})"
        if declared:
            self._names[declared[1]] = self._dot
        return f"if {value}"

    def _else(self, text: str) -> str:
        if not self._blocks:
            raise _Untranslatable("there is nothing that it belongs to")
        block = self._blocks[-1]
        if text.startswith("if "):
            return f"elif {self._expression(text[3:])}"
        if text:
            raise _Untranslatable("only `else` and `else if` have counterparts")
        self._dot = block.dot
        return "else"

    def _open(self, kind: str, end: str) -> None:
        self._blocks.append(_Block(kind, end, self._dot, dict(self._names)))

    def _end(self) -> str:
        if not self._blocks:
            raise _Untranslatable("there is nothing that it ends")
        block = self._blocks.pop()
        self._dot, self._names = block.dot, block.names
        return block.end

    def _new_name(self, wanted: str) -> str:
        """The name in our spelling, with a number where it is taken."""
        base = _snake(wanted)
        taken = {*self._names.values(), *(block.dot for block in self._blocks), self._dot}
        name, number = base, 2
        while name in taken:
            name, number = f"{base}{number}", number + 1
        return name

    # --- expressions

    def _expression(self, text: str) -> str:
        tokens: list[str] = []
        position = 0
        while position < len(text.rstrip()):
            match = _TOKEN.match(text, position)
            if match is None:
                raise _Untranslatable(f"{text[position:].strip()!r} is not understood")
            tokens.append(match[1])
            position = match.end()
        value = self._pipeline(tokens)
        if tokens:
            raise _Untranslatable(f"{tokens[0]!r} is not understood")
        return value

    def _pipeline(self, tokens: list[str]) -> str:
        value = self._command(tokens, None)
        while tokens[:1] == ["|"]:
            tokens.pop(0)
            # Go hands the value over as the last argument.
            value = self._command(tokens, value)
        return value

    def _command(self, tokens: list[str], piped: str | None) -> str:
        if not tokens:
            raise _Untranslatable("there is no value")
        function = tokens[0] if re.fullmatch(r"[A-Za-z_]\w*", tokens[0]) else None
        if function in (None, "true", "false", "nil"):
            value = self._operand(tokens)
            if piped is not None or (tokens and tokens[0] not in "|)"):
                raise _Untranslatable("methods with arguments have no counterpart")
            return value
        tokens.pop(0)
        arguments = []
        while tokens and tokens[0] not in "|)":
            arguments.append(self._operand(tokens))
        if piped is not None:
            arguments.append(piped)
        return _call(str(function), arguments)

    def _operand(self, tokens: list[str]) -> str:
        word = tokens.pop(0)
        if word == "(":
            value = self._pipeline(tokens)
            if tokens[:1] != [")"]:
                raise _Untranslatable("a parenthesis is not closed")
            tokens.pop(0)
            return f"({value})"
        if word[0] in '"`':
            return _literal(word)
        if re.fullmatch(r"-?\d+(\.\d+)?", word) or word in ("true", "false"):
            return word
        if word == "nil":
            return "none"
        if word[0] == "$":
            return self._variable(word)
        if word[0] == ".":
            return self._field(word)
        raise _Untranslatable(f"{word!r} is not understood")

    def _variable(self, word: str) -> str:
        name, _, fields = word[1:].partition(".")
        if not name:  # `$` is the top
            if not fields:
                raise _Untranslatable("`$` alone has no counterpart")
            return _path(fields)
        if name not in self._names:
            raise _Untranslatable(f"the variable ${name} is not known")
        return ".".join([self._names[name], *([_path(fields)] if fields else [])])

    def _field(self, word: str) -> str:
        if word == ".":
            if not self._dot:
                raise _Untranslatable("`.` alone has no counterpart outside range and with")
            return self._dot
        return f"{self._dot}.{_path(word[1:])}" if self._dot else _path(word[1:])


def _call(function: str, arguments: list[str]) -> str:
    if function in _COMPARISONS and len(arguments) == 2:
        return f"{arguments[0]} {_COMPARISONS[function]} {arguments[1]}"
    if function == "eq" and len(arguments) > 2:
        return f"{arguments[0]} in [{', '.join(arguments[1:])}]"
    if function in ("and", "or") and arguments:
        return f" {function} ".join(f"({argument})" for argument in arguments)
    if function == "not" and len(arguments) == 1:
        return f"not ({arguments[0]})"
    if function == "index" and len(arguments) > 1:
        return arguments[0] + "".join(f"[{key}]" for key in arguments[1:])
    if function == "join" and len(arguments) == 2:
        return f"{arguments[0]} | join({arguments[1]})"
    if function in ("print", "println") and len(arguments) == 1:
        return arguments[0]
    if function in _FILTERS and len(arguments) == 1:
        return f"{arguments[0]} | {_FILTERS[function]}"
    raise _Untranslatable(f"the function {function} with {len(arguments)} arguments has no counterpart")


def _literal(word: str) -> str:
    """A text of Go in our syntax: in quotes, with the escapes that both know."""
    if word[0] == "`":
        escaped = word[1:-1].replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if re.search(r"\\[^nrt\"\\]", word):
        raise _Untranslatable(f"the text {word} has an escape that is not understood")
    return word


def _path(fields: str) -> str:
    return ".".join(_snake(name) for name in fields.split("."))


def _snake(name: str) -> str:
    """`MaxTokens` → `max_tokens`, `ID` → `id`, `JSONText` → `json_text`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return spaced.lower()


def _plain(text: str) -> str:
    """Text between actions: what would begin a tag or a comment of ours is printed instead."""
    return _JINJA_MARK.sub(lambda match: f'{{{{ "{match[0]}" }}}}', text)
