from __future__ import annotations

import time

import jmespath
import pytest

from pipeline_engine.steps.growth import growth_of


@pytest.mark.parametrize(
    ("expression", "growth"),
    [
        ("@", 1),
        ("a.b[0].c[1:3]", 1),
        ("a[0].b[0].c[0].d[0].e[0].f[0]", 1),
        ("rows[?n > `1` && kind == 'x' || !gone].name | [0]", 1),
        ("[*].{id: id, name: user.name, tags: tags[].label, first: rows[0].x}", 1),
        ("(a || b) | (c || d) | (e && f)", 1),
        ("length(rows)", 1),
        ("sort_by(rows, &n)[0]", 1),
        ("[@,@]", 2),
        ("[a,b,a]", 2),
        ("{a: @, b: @, c: x}", 3),
        ("[@,@] | [@,@,@]", 6),
        ("[*].[@,@][]", 2),
        ("*.[@,@]", 2),
        ("map(&[@,@], @) | [*].[@,@]", 4),
        ("[?[@,@] | [@,@]]", 4),
        ("([@,@] | [@,@]) == @", 5),
        ("length([@,@] | [@,@])", 4),
        ("map(&'" + "x" * 640 + "', @)", 1),
        ("[@, 'x', `1`]", 1),
        ("['x' | [@,@], @]", 2),
        ("items[].{" + ", ".join(f"field_{i}: meta.field_{i}" for i in range(20)) + "}", 1),
        ("{a: meta.a, b: meta.b.c, c: meta[*].c, d: meta[].d}", 1),
        ("{a: @.x.a, b: @.x.b, c: length(@.x.c), d: join(',', @.x.d)}", 1),
        ("{a: meta.a, all: meta, b: meta.b}", 2),
        ("{a: meta.b, all: meta, b: meta.b.c}", 3),
        ("[a.b, a.*.c]", 2),
        ("[items[*].a, items[].a, items[0].a]", 3),
        ("[items[?a].b, items[?b].c]", 2),
        ("[a.to_array(b), a.c]", 1),
        ("[a.{x: b, y: c}.z, a.d]", 2),
        ("[a | 'x', a]", 2),
        ("|".join(["[@,@]"] * 24), 2**24),
        ("|".join(["[@,@]"] * 200), 10**12),
    ],
)
def test_the_growth_of_an_expression_is_told_from_its_syntax(expression: str, growth: int) -> None:
    assert growth_of(jmespath.compile(expression).parsed) == growth


@pytest.mark.parametrize("piece", ["[?a]", "[0]", "[]", ".*", " | [?a].b[0]"])
def test_a_long_expression_is_looked_at_once(piece: str) -> None:
    began = time.process_time()
    assert growth_of(jmespath.compile("@" + piece * 60).parsed) == 1
    assert time.process_time() - began < 1
