from __future__ import annotations

import threading
from typing import Any

import pytest

from pipeline_engine.errors import ErrorCode, TemplateError
from pipeline_engine.templates import Templates

NAMES = frozenset({"sources", "options", "job", "step", "previous"})


@pytest.fixture
def context() -> dict[str, Any]:
    json = {"items": [1, 2], "values": 3, "copy": "c", "title": None, "ok": True}
    return {
        "options": {"name": "Ada"},
        "sources": [{"kind": "raw", "content": "{{ 7*7 }} {% raw %}"}],
        "previous": {"x": [{"text": "t", "json": json, "label": "x", "shard_key": None}]},
        "item": {"text": "keep", "json": None},
    }


@pytest.fixture
def templates() -> Templates:
    return Templates()


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("Hi {{ options.name }}", "Hi Ada"),
        ('{{ options.opt | default("none") }}', "none"),
        ("{{ previous.x[0].json.items }}", "[1,2]"),
        ("{{ previous.x[0].json.values }}", "3"),
        ("{{ previous.x[0].json.copy }}", "c"),
        ("{{ previous.x[0].json }}", '{"items":[1,2],"values":3,"copy":"c","title":null,"ok":true}'),
        ("{{ previous.x[0].json.ok }}/{{ previous.x[0].json.title }}", "true/null"),
        ("line\n{{ options.name }}\n", "line\nAda\n"),
        ("{{ sources[0].content }}", "{{ 7*7 }} {% raw %}"),
        ("{% for k, v in options.items() %}{{ k }}={{ v }}{% endfor %}", "name=Ada"),
        ("{{ options.keys() }}{{ options.values() }}{{ options.get('no', 'z') }}", '["name"]["Ada"]z'),
        ("{{ options.items | default('d') }} {{ options.items() }}", 'd [["name","Ada"]]'),
        ("{{ '' ~ options }}", '{"name":"Ada"}'),
        ("{{ previous.x | map(attribute='text') | list }}", '["t"]'),
        ("{{ previous.x | length }}{{ previous.x[-1].text }}{{ options is mapping }}", "1ttrue"),
        ("{{ 'a,b'.split(',') }}{{ options.name.upper() }}", '["a","b"]ADA'),
        ("{{ 'abc' | center(7) }}|{{ 'a b c' | wordcount }}", "  abc  |3"),
        ("{{ ('{\"a\":[1]}' | fromjson).a }}", "[1]"),
        ("{{ ['<ü>'] | tojson }}{{ options | tojson(indent=1) }}", '["<ü>"]{\n "name": "Ada"\n}'),
        ("{{ options.get('no') | tojson }}", "null"),
        ("{{ options.no | default(none) | tojson }}", "null"),
        ("{{ previous.x[0].json.ok | string }}{{ none | string }}{{ options | string }}", 'truenull{"name":"Ada"}'),
        ("{{ [true, none, 1.5, 'a', [false]] | join(',') }}", "true,null,1.5,a,[false]"),
        ("{{ previous.x[0].json['items'] | join }}{{ [1, 2] | join(0) }}{{ 'abc' | join('-') }}", "12102a-b-c"),
        ("{{ [] | join }}{{ none | join }}{{ options | join }}{{ range(3) | join(' ') }}", "name0 1 2"),
        ("{{ previous.x | join(',', attribute='label') }}", "x"),
        ("{{ [{'a': {'b': [true]}}] | join(',', attribute='a.b.0') }}", "true"),
        (
            "{{ '<a>' | e | e }} {{ '<a>' | e | forceescape }} {{ true | forceescape }}",
            "&lt;a&gt; &amp;lt;a&amp;gt; true",
        ),
        ("<p{{ {'class': 'a\"b', 'n': 1, 'no': none, 'on': true} | xmlattr }}>", '<p class="a&#34;b" n="1" on="true">'),
        ("{{ {} | xmlattr }}{{ {'a': 'b'} | xmlattr(false) }}", 'a="b"'),
    ],
)
def test_values_render_as_text_or_compact_json(
    templates: Templates, context: dict[str, Any], source: str, text: str
) -> None:
    assert templates.render(source, context) == text


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("Hi {{ options.nmae }}", "line 1: options.nmae is undefined"),
        ("a\n{{ nope }}", "line 2: nope"),
        ("{{ previous.x[0].json.missing.deep }}", "json.missing is undefined"),
        ("{{ previous.x[0].json.keys }}", "json.keys"),
        ("{{ previous.x[9].text }}", "previous.x[9]"),
        ("{{ options['items'] }}", "items"),
        ("{% if options.nmae %}{% endif %}", "nmae"),
        ("{{ options.nmae | tojson }}", "nmae"),
        ("{{ options.nmae | wordcount }}", "nmae"),
        ("\n{{ 1 | wordcount }}", "line 2: the filter wordcount needs a text"),
        ("{{ 'x' | fromjson }}", "fromjson"),
        ("{{ 'x' | fromjson(1, 2) }}", "arguments"),
        ("{{ options | foo }}", "foo"),
        ("{{ options", "line 1"),
        ("{% include 'x' %}", "'x'"),
        ("{{ 1 / 0 }}", "1 / 0"),
    ],
)
def test_a_failed_rendering_names_line_and_culprit(
    templates: Templates, context: dict[str, Any], source: str, words: str
) -> None:
    with pytest.raises(TemplateError) as caught:
        templates.render(source, context)
    assert words in caught.value.message
    assert caught.value.code is ErrorCode.TEMPLATE_ERROR


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ sources.__class__ }}",
        "{{ options.__class__ }}",
        "{{ options._data }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ (options|attr('__class__')) }}",
        "{{ (options|attr('_data')) }}",
        "{{ options.pop('name') }}",
        "{{ options.clear() }}",
        "{{ options.update({'name': 'Eve'}) }}",
        "{{ sources.append(1) }}",
        "{{ options.get }}",
        "{{ keys }}",
        "{{ clear() }}",
        "{{ debug() }}",
        "{{ '{0.__class__}'.format(options) }}",
    ],
)
def test_templates_reach_no_python_object(templates: Templates, context: dict[str, Any], source: str) -> None:
    with pytest.raises(TemplateError) as caught:
        templates.render(source, context)
    assert "<" not in caught.value.message
    assert context["options"] == {"name": "Ada"}
    assert len(context["sources"]) == 1


def test_a_text_with_half_a_surrogate_pair_is_not_handed_over_as_an_object(templates: Templates) -> None:
    assert templates.render("{{ o }}", {"o": "\ud800x"}) == "\N{REPLACEMENT CHARACTER}x"
    with pytest.raises(TemplateError):
        templates.render("{{ o.encode() }}", {"o": "\ud800x"})


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10000000000 }}",
        "{% for i in range(10000) %}{% for j in range(10000) %}{% endfor %}{% endfor %}",
        "{{ '%1000000000000d' | format(1) }}",
        "{{ ('x' * 10000) | replace('x', 'y' * 10000) }}",
        "{% set n = namespace(x='xxxxxxxxxx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    ],
)
def test_too_much_work_ends_with_the_name_of_the_limit(source: str) -> None:
    with pytest.raises(TemplateError, match=r"limits\.template_fuel"):
        Templates(fuel=200_000).render(source, {})


@pytest.mark.parametrize(
    "source",
    [
        "{{ '{:>100000000000}'.format(1) }}",
        "{{ 'x' | center(100000000000) }}",
        "{{ [1] | tojson(indent=100000000000) }}",
        "{{ " + "not " * 20_000 + "1 }}",
        "{{ 1" + "+1" * 30_000 + " }}",
        "{{ " + "[" * 20_000 + "]" * 20_000 + " }}",
        "{% if 1 %}" + "{% elif 1 %}" * 20_000 + "{% endif %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_what_could_end_the_process_is_refused(templates: Templates, source: str) -> None:
    with pytest.raises(TemplateError):
        templates.render(source, {})


@pytest.mark.parametrize(
    "source",
    [
        "{{ [options.no] | join }}",
        "{{ options.no | join }}",
        "{{ options.no | string }}",
        "{{ 1 | join }}",
        "{{ [options] | join(attribute='no') }}",
        "{{ [1] | join(attribute='no') }}",
        "{{ {'a b': 1} | xmlattr }}",
        "{{ 'a' | xmlattr }}",
    ],
)
def test_a_filter_says_what_it_cannot_take(templates: Templates, context: dict[str, Any], source: str) -> None:
    with pytest.raises(TemplateError, match=r"line 1: .*(join|string|xmlattr)"):
        templates.render(source, context)


def test_what_is_joined_counts_as_work() -> None:
    source = "{% for i in range(1000) %}{% set s = t | join(t) %}{% endfor %}"
    with pytest.raises(TemplateError, match=r"limits\.template_fuel"):
        Templates(fuel=100_000).render(source, {"t": "x" * 500})
    assert Templates().run_small("{{ t | join }}", {"t": ["x" * 1000] * 1000}, is_expression=False) == (False, None)


@pytest.mark.parametrize(
    "source", ["{{ o }}", "{{ o | tojson }}", "{{ o | string }}", "{{ [o] | join }}", "{{ '' ~ o }}"]
)
def test_nan_is_never_printed(templates: Templates, source: str) -> None:
    with pytest.raises(TemplateError):
        templates.render(source, {"o": {"x": float("nan")}})


def test_numbers_print_as_json_numbers_and_whole_ones_exactly(templates: Templates) -> None:
    numbers = [1, 1.0, 2.5, 12345678901234567890123]
    assert templates.render("{{ n }}", {"n": numbers}) == "[1,1.0,2.5,12345678901234567890123]"
    text = templates.render("{% for x in n %}{{ x }} {% endfor %}", {"n": numbers})
    assert text == "1 1.0 2.5 12345678901234567890123 "


def test_what_is_not_json_data_is_refused(templates: Templates) -> None:
    with pytest.raises(TemplateError, match="object"):
        templates.render("{{ o }}", {"o": object()})


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("previous.x[0].text == 't'", True),
        ("item.text == 'keep'", True),
        ("'x' in item.text", False),
        ("previous.x[0].json.title", None),
        ("options.get('no')", None),
        ("[options.name, previous.x[0].json['items']]", ["Ada", [1, 2]]),
        ("options.no is defined", False),
    ],
)
def test_expressions_give_plain_values(
    templates: Templates, context: dict[str, Any], expression: str, value: object
) -> None:
    assert templates.evaluate(expression, context) == value


@pytest.mark.parametrize("expression", ["1 +", "options.nmae", "nope", "1 }}{{ 2", "options.name # x", ""])
def test_bad_expressions_raise(templates: Templates, context: dict[str, Any], expression: str) -> None:
    with pytest.raises(TemplateError):
        templates.evaluate(expression, context)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ previous.y[0].text }}", ["line 1", "'y'", "is not a step that this one depends on"]),
        ("\n{{ previous['my-step'] }}", ["line 2", "'my-step'"]),
        ("{{ previous.get('z') }}", ["'z'"]),
        ("a\n{{ foo }}", ["line 2", "'foo' is not defined"]),
        ("{{ pop }}", ["'pop'"]),
        ("{% if %}", ["line 1"]),
        ("\n{{ options | foo }}", ["line 2", "no filter 'foo'"]),
        ("{{ options is not bar }}", ["no test 'bar'"]),
        ("{% filter uper %}{% endfilter %}", ["'uper'"]),
        ("{% include 'x' %}", ["include"]),
        ("{{ {'a': {'b': 1}} }}{{ zz }}", ["'zz'"]),
    ],
)
def test_checking_a_template_names_line_and_culprit(templates: Templates, source: str, words: list[str]) -> None:
    (problem,) = templates.check_template(source, names=NAMES, steps={"x"})
    for word in words:
        assert word in problem


@pytest.mark.parametrize(
    "source",
    [
        "{{ previous.x }}{{ previous['x'] }}{{ previous.items() }}{{ previous | length }}",
        "{% raw %}{{ foo }}{% endraw %}{# {{ foo }} #}{{ 'previous.q {{ foo }}' }}",
        "{% set q = 1 %}{{ q }}{% for i in range(3) %}{{ loop.index }}{{ i }}{% endfor %}",
        "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1) }}{{ dict(a=namespace(b=1).b) }}",
        "{% for previous in sources %}{{ previous.foo }}{% endfor %}",
        "{{ options.from }}{{ options | tojson }}{{ sources is defined and not options.x is none }}",
        "{%- if options -%} x {%- endif -%}",
    ],
)
def test_a_good_template_has_no_problems(templates: Templates, source: str) -> None:
    assert templates.check_template(source, names=NAMES, steps={"x"}) == []


def test_every_problem_is_found(templates: Templates) -> None:
    problems = templates.check_template("{{ a }}\n{{ b | c }}\n{{ previous.d }}", names=NAMES, steps=())
    assert [problem[:7] for problem in problems] == ["line 1:", "line 2:", "line 2:", "line 3:"]


def test_expressions_are_checked_without_braces(templates: Templates) -> None:
    check = templates.check_expression
    assert check("previous.a[0].text == 'yes'", names=NAMES, steps={"a"}) == []
    assert "'b'" in check("previous.b[0].text", names=NAMES, steps={"a"})[0]
    assert "'item'" in check("'x' in item.text", names=NAMES, steps=())[0]
    assert len(check("1 +", names=NAMES, steps=())) == 1
    assert len(check("1 }}{{ 2", names=NAMES, steps=())) == 1
    assert "without {{ }}" in check("{{ options.x }}", names=NAMES, steps=())[0]
    assert "without {{ }}" not in check("{'a': {'b': 1}", names=NAMES, steps=())[0]


def test_a_context_is_only_looked_at_where_a_template_does(templates: Templates) -> None:
    class Untouched(list[object]):
        def __iter__(self) -> Any:
            raise AssertionError("the template does not use this")

        def __getitem__(self, index: Any) -> Any:
            raise AssertionError("the template does not use this")

    context = {"previous": {"big": Untouched([object()]), "x": [{"text": "t"}]}, "unused": object()}
    assert templates.render("{{ previous.x[0].text }}", context) == "t"


def test_two_threads_render_at_the_same_time(templates: Templates, context: dict[str, Any]) -> None:
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda: results.append(templates.render("{{ options.name }}" * 200, context)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["Ada" * 200] * 4


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(90000) %}{{ i % 10 }}{% endfor %}",
        "{{ large }}",
        "{% set s = [1] %}" + "{% set s = s + s %}" * 30 + "{{ s | join }}",
        "{% set s = [1] %}" + "{% set s = [s, s] %}" * 30 + "{{ s }}",
        "{% set s = [1] %}" + "{% set s = s | chain(s) %}" * 30 + "{{ s | join }}",
        "".join(f"{{% for a{i + 1} in [[a{i}, a{i}]] %}}" for i in range(30)).replace("a0", "1") + "{% endfor %}" * 30,
        "{% with a = [1, 1] %}" + "{% with a = [a, a] %}" * 30 + "{{ a }}" + "{% endwith %}" * 31,
        "{% set ns = namespace(s=[1]) %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s=1) %}{% for i in range(9000) %}{% set ns.s = namespace(x=ns.s) %}{% endfor %}",
        "{% macro m(x, n) %}{% if n %}{{ m(x + x, n - 1) }}{% else %}{{ x | join }}{% endif %}{% endmacro %}{{ m([1], 40) }}",
    ],
)
def test_what_takes_long_or_can_snowball_is_too_much_for_the_event_loop(templates: Templates, source: str) -> None:
    assert templates.run_small(source, {"large": list(range(100_000))}, is_expression=False) == (False, None)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% set t = options.name | default('?') ~ '!' %}{{ t }}", "Ada!"),
        ("{% for s in sources if s.kind == 'raw' %}{% set k = s['kind'] %}{{ k }}{% endfor %}", "raw"),
        (
            "{% set ns = namespace(n=0) %}{% for s in sources %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "1",
        ),
        ("{% set both = previous.x + sources %}{{ both | length }}", "2"),
    ],
)
def test_what_merely_keeps_values_is_small(
    templates: Templates, context: dict[str, Any], source: str, text: str
) -> None:
    assert templates.run_small(source, context, is_expression=False) == (True, text)


def test_a_source_is_given_no_more_of_the_context_than_it_reads(templates: Templates) -> None:
    context = {"previous": {"x": 1, "y": 2}, "options": {"a": 1, "b": 2}, "sources": ["s"], "step": {"id": "z"}}
    source = "{{ previous.x }}{{ options | length }}{{ sources[0] }}"
    assert templates.context_read(source, context, is_expression=False) == {
        "previous": {"x": 1},
        "options": {"a": 1, "b": 2},
        "sources": ["s"],
    }


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ item.text[:3] }}", "abc"),
        ("{{ item.text[1:3] }}{{ item.text[-2:] }}", "bcef"),
        ("{{ item.text[::2] }}", "ace"),
        ("{{ item.text[item.n:] | upper }}", "CDEF"),
        ("{% for letter in item.text[:2] %}<{{ letter }}>{% endfor %}", "<a><b>"),
        ("{% set word = item.text %}{{ word[:1] }}{{ [1, 2, 3][1:] }}{{ {'a': 1}['a'] }}", "a[2,3]1"),
    ],
)
def test_what_is_sliced_is_in_scope_like_anything_else(source: str, text: str) -> None:
    templates = Templates()
    assert templates.check_template(source, names={"item"}, steps=()) == []
    assert templates.render(source, {"item": {"text": "abcdef", "n": 2}}) == text


def test_an_unknown_name_in_a_slice_is_a_problem() -> None:
    templates = Templates()
    for source in ("{{ itme.text[:3] }}", "{{ item[itme:] }}", "{{ (item ~ itme)[:2] }}"):
        assert "'itme' is not defined here" in str(templates.check_template(source, names={"item"}, steps=()))
    assert templates.check_expression("itme[:2] == 'x'", names={"item"}, steps=()) != []
    assert templates.evaluate("item[:2] == 'ab'", {"item": "abc"}) is True


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ x | truncate(9) }}", "foo..."),
        ("{{ x | truncate(9, True) }}", "foo ba..."),
        ("{{ x | truncate(length=9, killwords=true, end='…') }}", "foo bar …"),
        ("{{ x | truncate(11) }}", "foo bar baz qux"),
        ("{{ x | truncate(11, False, '...', 0) }}", "foo bar..."),
        ("{{ x | truncate }}", "foo bar baz qux"),
    ],
)
def test_truncate_is_that_of_jinja2(source: str, text: str) -> None:
    assert Templates().render(source, {"x": "foo bar baz qux"}) == text
