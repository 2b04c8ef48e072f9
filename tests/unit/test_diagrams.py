"""Drawing definitions."""

from __future__ import annotations

from pipeline_engine.decoding import decode
from pipeline_engine.diagrams import to_dot, to_mermaid
from pipeline_engine.models import PipelineDef

STEPS = [
    {"id": "end", "kind": "map", "mode": "fanout", "config": {"map": "identity"}},
    {"id": "b", "kind": "llm", "name": 'Say "hi" <#1>\n', "depends_on": ["end", "end"], "export": True, "when": "true"},
]
DEFINITION = decode({"type": 'the "type"', "steps": STEPS}, PipelineDef)


def test_mermaid() -> None:
    assert to_mermaid(DEFINITION) == (
        "flowchart TD\n"
        '    s0["end (map, fanout)"]\n'
        '    s1(["Say #quot;hi#quot; #lt;#35;1#gt;  (llm)"])\n'
        "    s0 -.-> s1\n"
    )


def test_dot() -> None:
    assert to_dot(DEFINITION) == (
        'digraph "the \\"type\\"" {\n'
        "    node [shape=box];\n"
        '    "end" [label="end (map, fanout)"];\n'
        '    "b" [label="Say \\"hi\\" <#1>  (llm)", style=rounded];\n'
        '    "end" -> "b" [style=dashed];\n'
        "}\n"
    )
