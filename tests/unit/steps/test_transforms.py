from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jmespath
import pytest
import trio

from pipeline_engine.errors import ErrorCode, StepError, TemplateError
from pipeline_engine.jsontext import dumps_compact
from pipeline_engine.models import MapOperation, ParseFormat, ReduceOperation, StepConfig
from pipeline_engine.renderer import Renderer
from pipeline_engine.steps import transforms
from pipeline_engine.steps.transforms import MapOutput, apply_map, apply_reduce, check_jmespath
from pipeline_engine.templates import Templates
from pipeline_engine.worker_processes import WorkerProcesses


def item(text: str = "", json: object | None = None, label: str = "source 1") -> dict[str, Any]:
    return {"text": text, "json": json, "label": label, "shard_key": None}


def run(function: Callable[..., Any], settings: StepConfig, given: Any) -> Any:
    """What the operation gives, on an event loop of its own."""
    context = {"options": {"name": "Ada"}}
    workers = trio.CapacityLimiter(1)
    return trio.run(
        partial(
            function,
            settings,
            given,
            renderer=Renderer(Templates(), processes=WorkerProcesses()),
            context=context,
            workers=workers,
        )
    )


def mapped(operation: MapOperation, given: dict[str, Any], **config: Any) -> MapOutput | None:
    settings = StepConfig(map=operation, **config)
    output: MapOutput | None = run(apply_map, settings, given)
    return output


def reduced(operation: ReduceOperation, given: list[dict[str, Any]], **config: Any) -> MapOutput:
    settings = StepConfig(reduce=operation, **config)
    output: MapOutput = run(apply_reduce, settings, given)
    return output


def test_identity_keeps_text_and_json() -> None:
    assert mapped(MapOperation.IDENTITY, item("a", [1])) == MapOutput("a", [1], has_json=True)
    assert mapped(MapOperation.IDENTITY, item("a")) == MapOutput("a")


def test_template_sees_the_item_and_the_context() -> None:
    assert mapped(MapOperation.TEMPLATE, item("x"), template="{{ options.name }}: {{ item.text }}") == MapOutput(
        "Ada: x"
    )
    with pytest.raises(TemplateError, match="nmae"):
        mapped(MapOperation.TEMPLATE, item("x"), template="{{ options.nmae }}")


@pytest.mark.parametrize(
    ("expression", "output"),
    [
        ("a.b", MapOutput("hi", "hi", has_json=True)),
        ("a", MapOutput('{"b":"hi"}', {"b": "hi"}, has_json=True)),
        ("missing", MapOutput("null", None, has_json=True)),
    ],
)
def test_select_takes_a_part_of_the_json(expression: str, output: MapOutput) -> None:
    assert mapped(MapOperation.SELECT, item("", {"a": {"b": "hi"}}), expression=expression) == output


def test_select_that_cannot_be_applied_names_the_item() -> None:
    with pytest.raises(StepError, match="source 1") as caught:
        mapped(MapOperation.SELECT, item("", {"a": "x"}), expression="sum(a)")
    assert caught.value.code is ErrorCode.OUTPUT_INVALID


def test_filter_keeps_or_drops() -> None:
    assert mapped(MapOperation.FILTER, item("keep", 1), expression="item.text == 'keep'") == MapOutput(
        "keep", 1, has_json=True
    )
    assert mapped(MapOperation.FILTER, item("drop"), expression="item.text == 'keep'") is None


@pytest.mark.parametrize(
    ("format_", "text", "value"),
    [
        (ParseFormat.JSON, '\ufeff {"a": 1}', {"a": 1}),
        (ParseFormat.JSON, "null", None),
        (ParseFormat.JSONL, '{"a":1}\n\n2\n', [{"a": 1}, 2]),
        (ParseFormat.JSONL, "", []),
        (ParseFormat.CSV, "a,b\n1,2\n", [{"a": "1", "b": "2"}]),
        (ParseFormat.LOGFMT, "a=1 b=two", {"a": "1", "b": "two"}),
        (ParseFormat.LOGFMT, "a=1\n\na=2\n", [{"a": "1"}, {"a": "2"}]),
    ],
)
def test_parse_gives_json_and_keeps_the_text(format_: ParseFormat, text: str, value: object) -> None:
    assert mapped(MapOperation.PARSE, item(text), format=format_) == MapOutput(text, value, has_json=True)


@pytest.mark.parametrize(
    ("format_", "text", "words"),
    [
        (ParseFormat.JSON, '{"a":\nNaN}', "source 1 does not parse as json: NaN is not JSON at line 2"),
        (ParseFormat.JSONL, "1\nx", "line 2"),
        (ParseFormat.CSV, "a,b\n1", "line 2"),
        (ParseFormat.LOGFMT, 'a=1\na="', "line 2"),
    ],
)
def test_what_does_not_parse_is_named_with_its_place(format_: ParseFormat, text: str, words: str) -> None:
    with pytest.raises(StepError, match=words) as caught:
        mapped(MapOperation.PARSE, item(text), format=format_)
    assert caught.value.code is ErrorCode.OUTPUT_INVALID


@pytest.mark.parametrize(
    ("pattern", "output"),
    [
        (r"(?P<level>\w+): (?P<rest>\w+)(?P<no>!)?", MapOutput("e: x", {"level": "e", "rest": "x", "no": None}, True)),
        (r"\w:", MapOutput("e:", "e:", has_json=True)),
        (r"zzz", MapOutput("", None, has_json=True)),
    ],
)
def test_regex_gives_the_named_groups(pattern: str, output: MapOutput) -> None:
    assert mapped(MapOperation.REGEX, item("> e: x"), pattern=pattern) == output


def test_concat_joins_texts() -> None:
    items = [item("a"), item("b")]
    assert reduced(ReduceOperation.CONCAT, items).text == "a\nb"
    assert reduced(ReduceOperation.CONCAT, items, separator="").text == "ab"
    assert reduced(ReduceOperation.CONCAT, []) == MapOutput("")


def test_collect_takes_json_or_text() -> None:
    assert reduced(ReduceOperation.COLLECT, [item("a", [1]), item("b")]) == MapOutput('[[1],"b"]', [[1], "b"], True)


def test_merge_lets_later_objects_win() -> None:
    items = [item(json={"a": 1, "b": 1}), item(json={"b": 2})]
    assert reduced(ReduceOperation.MERGE, items).json == {"a": 1, "b": 2}
    with pytest.raises(StepError, match="part 2"):
        reduced(ReduceOperation.MERGE, [item(json={}), item("x", label="part 2")])


def test_count_by_counts_values_highest_first() -> None:
    lines = [item(json={"level": level}) for level in ("error", "info", "info")]
    output = reduced(ReduceOperation.COUNT_BY, lines, by="level")
    assert output.text == '{"info":2,"error":1}'
    assert output.json == {"info": 2, "error": 1}


def test_count_by_takes_lists_apart_and_names_other_values_by_their_json() -> None:
    items = [item(json=[{"k": True}, {"k": 1}, {"k": "b"}]), item(json={"k": "b"}), item(json={})]
    output = reduced(ReduceOperation.COUNT_BY, items, by="k")
    assert output.text == '{"b":2,"1":1,"null":1,"true":1}'


def test_count_by_counts_texts_without_json() -> None:
    assert reduced(ReduceOperation.COUNT_BY, [item("x"), item("x")], by="@").json == {"x": 2}


def test_top_keeps_the_highest_and_ties_in_order() -> None:
    rows = [{"u": "a", "n": 1}, {"u": "b", "n": 5}, {"u": "a", "n": 3}, {"u": "c", "n": "3"}, {"u": "d"}]
    items = [item(json=row) for row in rows]
    assert reduced(ReduceOperation.TOP, items, by="n", n=2).json == [{"u": "b", "n": 5}, {"u": "a", "n": 3}]
    assert reduced(ReduceOperation.TOP, [item(json=rows)], by="n").json == [rows[1], rows[2], rows[3], rows[0]]


def test_top_without_by_takes_numbers_and_counts() -> None:
    assert reduced(ReduceOperation.TOP, [item(json=[1, 3, 2])], n=2).json == [3, 2]
    counts = [item(json={"info": 2, "error": 7})]
    assert reduced(ReduceOperation.TOP, counts, n=1).json == [{"key": "error", "count": 7}]


def test_top_of_what_is_no_number_names_the_item() -> None:
    with pytest.raises(StepError, match="source 1 has abc"):
        reduced(ReduceOperation.TOP, [item("abc")])


def test_reduce_template_sees_all_items() -> None:
    template = "{{ options.name }}{% for i in items %} {{ i.label }}={{ i.text }}{% endfor %}"
    assert reduced(ReduceOperation.TEMPLATE, [item("a"), item("b", label="s2")], template=template) == MapOutput(
        "Ada source 1=a s2=b"
    )


def test_jmespath_is_checked() -> None:
    assert check_jmespath("a[?b > `1`].c") is None
    for broken in ("a[", "foo(a)x", "a.(b"):
        message = check_jmespath(broken)
        assert message is not None
        assert "\n" not in message


DOUBLED = "|".join(["[@,@]"] * 24)


def test_jmespath_that_multiplies_its_input_without_measure_is_refused() -> None:
    assert check_jmespath("|".join(["[@,@]"] * 9)) is None
    message = check_jmespath(DOUBLED)
    assert message == f"multiplies its input up to {2**24} times; at most 1000 are allowed"


@pytest.mark.parametrize(
    "work",
    [
        partial(mapped, MapOperation.SELECT, item("1", [1, 2]), expression=DOUBLED),
        partial(reduced, ReduceOperation.COUNT_BY, [item("1", 1)] * 5, by=DOUBLED),
        partial(reduced, ReduceOperation.TOP, [item("1", 1)] * 5, by=DOUBLED),
    ],
)
def test_jmespath_that_would_make_too_much_of_its_input_is_not_applied(work: Callable[[], object]) -> None:
    with pytest.raises(StepError, match="multiplies its input of 5 characters up to 16777216 times") as refused:
        work()
    assert refused.value.code is ErrorCode.OUTPUT_INVALID


def test_jmespath_may_multiply_a_small_input() -> None:
    output = mapped(MapOperation.SELECT, item("7", 7), expression="|".join(["[@,@]"] * 8))
    assert output is not None
    assert output.text.count("7") == 256


@pytest.mark.parametrize(
    "expression", ["ceil(to_number('inf'))", "floor(to_number('nan'))", "contains('a', `1`)", "join(',', `[1]`)"]
)
def test_a_value_that_jmespath_functions_cannot_take_is_invalid(expression: str) -> None:
    assert check_jmespath(expression) is None
    with pytest.raises(StepError, match="cannot be applied to source 1") as refused:
        mapped(MapOperation.SELECT, item("x", {}), expression=expression)
    assert refused.value.code is ErrorCode.OUTPUT_INVALID


def nested_to_string(levels: int) -> str:
    return "to_string([" * levels + "@" + "])" * levels


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("join(@.glue, @.texts)", {"glue": "-" * 1_000, "texts": [""] * 10_000}),
        (nested_to_string(24), '"'),
        ("[*]." + nested_to_string(8), [""] * 2_000),
        ('[*].[`"' + "x" * 955 + '"`]', [0] * 2_000),
        ("[*].['" + "x" * 60_000 + "'][]", [0] * 20),
        ("map(&'" + "x" * 60_000 + "', @)", [0] * 20),
        ("[*].{" + "x" * 1_000 + ": @}", [0] * 2_000),
        ("[*]." + "[" * 100 + "@" + "]" * 100, [0] * 1_000),
        ("[*].[" + ",".join(f"a{i}" for i in range(200)) + "]", [{}] * 1_000),
        ("[*].ceil(@)", [1e308] * 12_000),
        ("[*].type(@) | [" + ",".join("@" * 15) + "]", [0] * 10_000),
    ],
)
def test_what_an_expression_adds_to_its_input_is_bounded(
    expression: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transforms, "MAX_GROWN_CHARS", 1_000_000)
    assert check_jmespath(expression) is None
    with pytest.raises(StepError, match="makes too much of its input; at most 1000000 characters") as refused:
        mapped(MapOperation.SELECT, item("x", value), expression=expression)
    assert refused.value.code is ErrorCode.OUTPUT_INVALID


def test_what_is_added_to_all_elements_of_a_reduce_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "MAX_GROWN_CHARS", 1_000_000)
    elements = [item(str(n), n) for n in range(1_100)]
    by = "join('', ['" + "0" * 955 + "', to_string(@)])"
    for operation in (ReduceOperation.COUNT_BY, ReduceOperation.TOP):
        reduced(operation, elements[:400], by=by)
        with pytest.raises(StepError, match="makes too much"):
            reduced(operation, elements, by=by)


def test_what_an_expression_adds_is_made_in_a_thread_unless_it_is_little(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[object] = []
    run_sync = trio.to_thread.run_sync

    async def counted(*args: Any, **options: Any) -> Any:
        threads.append(args)
        return await run_sync(*args, **options)

    monkeypatch.setattr(trio.to_thread, "run_sync", counted)
    for elements, count in ((10, 0), (100, 1)):
        output = mapped(MapOperation.SELECT, item("x", [0] * elements), expression="[*].['" + "x" * 1_000 + "'][]")
        assert output is not None
        assert output.json == ["x" * 1_000] * elements
        assert len(threads) == count


MANY_FIELDS = "items[].{" + ", ".join(f"field_{i}: meta.field_{i}" for i in range(20)) + "}"


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (MANY_FIELDS, {"items": [{"meta": {f"field_{i}": f"value {i}" for i in range(20)}}] * 10_000}),
        ("[*].{name: a, kind: 'x'}", [{"a": 1}] * 400_000),
        ("[?contains(`" + dumps_compact([f"name {i}" for i in range(1_000)]) + "`, @)]", ["name 1", "b"] * 100_000),
        ("[?@ == '" + "x" * 1_000 + "']", ["name 1", "b"] * 100_000),
    ],
)
def test_ordinary_selections_of_some_megabytes_are_made(expression: str, value: object) -> None:
    output = mapped(MapOperation.SELECT, item(dumps_compact(value), value), expression=expression)
    assert output is not None


@pytest.mark.parametrize("value", [{"a": ["\u00e9", '"', 1.5, None]}, [], "text", True])
def test_to_string_writes_what_jmespath_writes(value: object) -> None:
    output = mapped(MapOperation.SELECT, item("x", value), expression="to_string(@)")
    assert output is not None
    assert output.text == jmespath.search("to_string(@)", value)


def test_join_takes_any_separator_for_a_text_of_usual_length() -> None:
    output = mapped(MapOperation.SELECT, item("x", [""] * 100), expression="join('" + "-" * 100 + "', @)")
    assert output is not None
    assert len(output.text) == 9_900


def test_a_pattern_that_takes_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "PATTERN_SECONDS", 0.05)
    with pytest.raises(StepError, match="longer than"):
        mapped(MapOperation.REGEX, item("a" * 40), pattern=r"(?:a|aa)+b")


def test_large_texts_are_worked_on_in_a_thread() -> None:
    text = '{"a": "' + "x" * transforms.INLINE_CHARS + '"}'
    output = mapped(MapOperation.PARSE, item(text), format=ParseFormat.JSON)
    assert output is not None
    assert output.has_json
