"""Draws a pipeline definition as text: Mermaid and Graphviz."""

from __future__ import annotations

from pipeline_engine.models import PipelineDef, StepDef, StepMode

_MERMAID_ESCAPES = str.maketrans({
    "#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;", "`": "#96;", "\\": "#92;", "\n": " ", "\r": " ",
})  # fmt: skip
_DOT_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": " ", "\r": " "})


def to_mermaid(definition: PipelineDef) -> str:
    """A Mermaid flowchart, top down; exported steps have round ends, a dotted edge is one that a condition guards."""
    # Ids of our own: a step may be called `end`, which Mermaid takes for a keyword.
    names = {step.id: f"s{index}" for index, step in enumerate(definition.steps)}
    lines = ["flowchart TD"]
    for step in definition.steps:
        opening, closing = ("([", "])") if step.export else ("[", "]")
        lines.append(f'    {names[step.id]}{opening}"{_label(step).translate(_MERMAID_ESCAPES)}"{closing}')
    for step in definition.steps:
        arrow = "-->" if step.when is None else "-.->"
        lines += [f"    {names[needed]} {arrow} {names[step.id]}" for needed in dict.fromkeys(step.depends_on)]
    return "\n".join(lines) + "\n"


def to_dot(definition: PipelineDef) -> str:
    """A Graphviz digraph, top down, in the same manner."""
    lines = [f"digraph {_quoted(definition.type)} {{", "    node [shape=box];"]
    for step in definition.steps:
        style = ", style=rounded" if step.export else ""
        lines.append(f"    {_quoted(step.id)} [label={_quoted(_label(step))}{style}];")
    for step in definition.steps:
        style = "" if step.when is None else " [style=dashed]"
        lines += [f"    {_quoted(needed)} -> {_quoted(step.id)}{style};" for needed in dict.fromkeys(step.depends_on)]
    return "\n".join([*lines, "}"]) + "\n"


def _label(step: StepDef) -> str:
    mode = "" if step.mode is StepMode.SINGLE else f", {step.mode}"
    return f"{step.title} ({step.kind}{mode})"


def _quoted(text: str) -> str:
    return f'"{text.translate(_DOT_ESCAPES)}"'
