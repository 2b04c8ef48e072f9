from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from pipeline_engine.jsontext import loads_strict
from pipeline_engine.steps import json_mending, structured
from pipeline_engine.steps.structured import AnswerError, parse_loose, parse_strict

AS_IT_STANDS: list[tuple[str, object]] = [
    ('{"a":1}', {"a": 1}),
    (" \n[1]\n", [1]),
    ('"hi"', "hi"),
    ("null", None),
    ('```json\n{"a":1}\n```', {"a": 1}),
    ('```json\n{"a":1}', {"a": 1}),
    ('Sure {ok}! Here:\n```json\n{"a":1}\n```\nBye', {"a": 1}),
    ('```bash\nls {x}\n```\n```json\n{"a":4}\n```', {"a": 4}),
    ('<think>{"draft":true}</think>\n{"a":2}', {"a": 2}),
    ('reasoning {"x":0}</think>{"a":3}', {"a": 3}),
    ('{"code":"```py\\nprint(1)\\n```"}', {"code": "```py\nprint(1)\n```"}),
    ('{"a":"</think>"}', {"a": "</think>"}),
    ('{"a":1} Hope this helps :-)', {"a": 1}),
    ('I don\'t know: {"a":"it\'s {"}', {"a": "it's {"}),
    ('{"a":1}\n{"a":1}', {"a": 1}),
    ('\ufeff{"a":1}', {"a": 1}),
    ('{"n":12345678901234567890}', {"n": 12345678901234567890}),
    ("The list: [1, 2] done", [1, 2]),
    ('```json\n{"a":1}```', {"a": 1}),
    ('```json\n{"a":1}```\nThat is all, see [1].', {"a": 1}),
    ('```json\n{"a":1} ```\nThat is all.\n```bash\nls {"x":2}\n```', {"a": 1}),
    ('```json {"a":1}```', {"a": 1}),
    ('```json\n{"a":1}\n``` done', {"a": 1}),
    ('```json\n{"a":1}\n``` and\n```bash\nls {"x":2}\n```', {"a": 1}),
    ('```json {"a":1}\n```', {"a": 1}),
    ('```json title="x"\r\n{"a":1}\r\n```\r\n', {"a": 1}),
    ('``` \n{"a":1}\n```', {"a": 1}),
    ("```\n42\n```", 42),
    ('```markdown\n```json\n{"a":1}\n```\n```', {"a": 1}),
    ('{"a":1}\n<think>later</think>', {"a": 1}),
    ('{"a":1}\n<think>later</think>\nDone.', {"a": 1}),
    ('{"a":1}<think>{"no":0}', {"a": 1}),
    ('{"a":1}<think>better</think>{"a":2}', {"a": 2}),
    ('<THINK>{"no":0}</THINK>{"a":1}', {"a": 1}),
    ('<think>x <think> y</think> z</think>{"a":1}', {"a": 1}),
    ('see [1] and [2]: {"a":1}', {"a": 1}),
    ('{"a":[1]} as in [3, 4] and [ 12 ]', {"a": [1]}),
    ('[1]: Smith 2020\n{"a":1}', {"a": 1}),
    ('- [ ] check data["key"], x[0] and string[]: {"a":1}', {"a": 1}),
    ('{"a":1} in [0, 1) or [0, ∞)', {"a": 1}),
    ('of [1]: [{"a":1}]', [{"a": 1}]),
    ('prefix {"a":"</think>","b":[1,2]}', {"a": "</think>", "b": [1, 2]}),
    ('prefix {"a":"<think>"} suffix', {"a": "<think>"}),
    ('<think>{"a":"</think>"} no</think>{"b":1}', {"b": 1}),
    ('{note: "x"} {"a":1}', {"a": 1}),
    ('Given f = {x: 1, the answer is {"a": 1}', {"a": 1}),
    ('if (x) {return: "y} {"a":1}', {"a": 1}),
    ('{"answer": 1}\n\nUse it like this:\n```python\nsend({"example": 2})\n```', {"answer": 1}),
    ('{"answer": 1}\n```python\n{"example": 2}\n```', {"answer": 1}),
    ('{"answer": 1}\n```bash\n{"example": 2}\n```', {"answer": 1}),
    ('```\ncurl -d \'{"example": 2}\'\n```\nIt gives {"answer": 1}', {"answer": 1}),
    ('{"answer": 1}\n```\ncurl -d \'{"example": 2}\'\n```', {"answer": 1}),
    ('{"answer": 1}\n```\ncurl -d \'{"example": \n```\nDone.', {"answer": 1}),
    ('Of [1]:\n```\nresult = {"a":1}\n```', {"a": 1}),
    ('```json\n{"a":1}\n// that is all\n```', {"a": 1}),
    ('```python\n{"a":1}\n```', {"a": 1}),
    ('[Note] Here:\n```json\n{"a":1}\n```', {"a": 1}),
    ('{ok} then {"a":1}', {"a": 1}),
    ('```json\n{"a": 2, "b\n```\nCorrected:\n```json\n{"a":1}\n```', {"a": 1}),
    ('Schema:\n```json\n{"a": <number>}\n```\n{"a":1}', {"a": 1}),
    ('```json\n{"a":1}\n```\nThe model:\n```\n{x} and {y: 1}\n```', {"a": 1}),
    ('First:\n```json\n{"a":1}\n```\nCorrected:\n```json\n{"a": 2, "b\n```', {"a": 1}),
    ('First:\n```json\n{"a":1}\n```\nCorrected:\n```\n{"a": NaN}\n```', {"a": 1}),
    ('First: {"a":1}\nCorrected:\n```json\n{"a": 2, "b\n```', {"a": 1}),
    ('First:\n```json\n{"a":1}\n```\nCorrected: {"a": 2, "b', {"a": 1}),
    ('```python\n{"a":1}\n```\nwhere ["x", "y"] are the tags', {"a": 1}),
    ('[2024-01-01, 2024-12-31) it is:\n```json\n{"a":1}\n```', {"a": 1}),
    ('Format: {"a": <int>}\n```json\n["x"]\n```', ["x"]),
    ('Format: {"a": <int>}\n```python\n["x"]\n```', ["x"]),
    ('Format: {"a": <int>}\nThe tags: [{"a":1}]', [{"a": 1}]),
    ('Of {name: "x"} come ["x", "y"]', ["x", "y"]),
    ('It begins with `{"`.\n```json\n{"a":1}\n```\nIt ends with `"}`.', {"a": 1}),
    ('It begins with `{"`.\n```json\n{"a":"5\\""}', {"a": '5"'}),
    ('It begins with `{"`.\n```python\n{"a":1}\n```\nIt ends with `"}`.', {"a": 1}),
    ('<think>The user wants {"a": 5". Hmm.</think>\n{"a": 1, "size": "5\\""}', {"a": 1, "size": '5"'}),
    ('The user wants {"a": 5". Hmm.</think>\n{"a": 1, "size": "5 \\" or 6\\""}', {"a": 1, "size": '5 " or 6"'}),
    ('<think>Schema: {"a: 1} ok</think>\n```json\n{"a":1}\n```\nThe 3" pipe.}', {"a": 1}),
    ('{"a":0} <think>Or {"a: 1} ok</think>\n```json\n{"a":1}\n```\nThe 3" pipe.}', {"a": 1}),
    ('<think>{"a: 0}</think>so<think>{"b: 1}</think>\n{"a":"</think>","b":"5\\""}', {"a": "</think>", "b": '5"'}),
    ('Use {"a" as the key:\n```json\n{"a":1}\n```', {"a": 1}),
]
MENDED: list[tuple[str, object]] = [
    ('{"a":[1,2,],}', {"a": [1, 2]}),
    ("{'a':1}", {"a": 1}),
    ('{"t":"a\nb"}', {"t": "a\nb"}),
    ("{'a': True, 'b': [None, False]}", {"a": True, "b": [None, False]}),
    ('Sure! Here it is: {"a": [1, 2,],} Hope it helps.', {"a": [1, 2]}),
    ("{'a': 'it\\'s \"x\" , }'}", {"a": 'it\'s "x" , }'}),
    ('{"a": "None, True,]",}', {"a": "None, True,]"}),
    ('prefix {"a":"</think>","b":[1,2,],}', {"a": "</think>", "b": [1, 2]}),
    ('prefix {"code": "\n```py\nprint(1)\n```\n"}', {"code": "\n```py\nprint(1)\n```\n"}),
    ("```json\n{'a':1}```", {"a": 1}),
]
UNPARSED = [
    "   ",
    "only prose {ok} [citation needed]",
    '<think>{"a":1}',
    '{"a":1} {"b":2}',
    '{"score":NaN}',
    "[1,-Infinity]",
    '{"x":1e999}',
    '{"a":1,"a":2}',
    '{"a": {"b": 1}',
    '{"a": NaN, "b": {"c": 1}}',
    '{"a":[1}',
    '{"a": "cut',
    '```json\n[1] {"a": "cut',
    "[1] [2]",
    '[1] {"a":1}',
    '["a","b"]\n\nSchema: {"type": "array"}',
    '[1, 2, 3]\n\nHere {"n": 3} of them.',
    'The longer [1, 2, 3, 4, 5] beside {"a":1}',
    'Years [1984] and {"a":1}',
    '```json\n[1]\n```\n```json\n{"a":1}\n```',
    '```\nsee [1] and {"a":1}\n```',
    '{ // the result\n "person": {"name": "x"} }',
    '[ // c\n {"a":1}\n]',
    '{1: {"a": 1}}',
    '[NaN, {"a":1}]',
    '{“a”: {"b":1}}',
    '{my-key: {"a":1}}',
    '{the result {"a":1}',
    '{ // c\n```json\n{"a":1}\n```\n}',
    '<think>so</think>{ # c\n {"a":1}}',
    '```json\n{ # c\n "a": {"b":1}\n}\n```',
    '```json\n{ # c\n "a": {"b":1}\n```',
    'Here: { // c\n "a": {"b":1}}',
    'Here: {“a”: {"b":1}}',
    'Here: {my-key: {"b":1}}',
    'Here: [NaN, {"b":1}]',
    'First:\n```json\n{"a":1}\n```\nCorrected:\n```json\n{"a": 2, "b',
    '{"a":1}<think>better</think>{"a": 2, "b',
    "prose " + "{a: " * 20 + '{"a":1}',
    'of [1]: {"a":1} {"b":2}',
    '{a: {"b": 1}}',
    '```json\n{"a": "he said "hi""}\n```\nSee [1].',
    '```json\n{"a": 1, "b": [1,2}\n```\nTags: ["x"]',
    '```python\n{"a": "he said "hi""}\n```\nSee [1].',
    '{"a": "he said "hi" ok"}\nSource: [1]',
    'Result: {"a": "he said "hi" ok"}\nSource: [1]',
    'Result: {"a": "5" pipe"}\n```text\nlog\n```\nSource: [1]',
    '{"a": 1, ...}\nwhere ["x", "y"] are the tags',
    '{a: 1, b: 2}\nwhere ["x", "y"] are the tags',
    '{"a": 1, ...}\nwhere ["x"] and ["y"] are the tags',
    '["x"] or {"a": <int>} or ["y"]',
    'It begins with `{"`.\n```json\n{"a":2}\n```\nIt ends with `"}`.\n```json\n{b',
    'x {"a":"</think>","b":NaN}',
    'x {"a":"</think> [1]"} {"b":2}',
    "[" * 100_000,
    "[" * 100_000 + "]" * 100_000,
]

CUT: list[tuple[str, object]] = [
    ('First draft:\n```json\n{"a": 1}\n```\nCorrected:\n```json\n{"a": 2, "b', None),
    ('First draft:\n```json\n{"a": 1}\n```\nCorrected:\n```json\n', None),
    ('First draft:\n```json\n{"a": 1}\n```\nCorrected:\n```\n{"a": 2, "b', None),
    ('First draft:\n```json\n{"a": 1}\n```\nCorrected: {"a": 2, "b', None),
    ('First draft:\n```json\n{"a": 1}\n```\nCorrected: {a: 2, b', None),
    ('```json\n{"a": 1}', None),
    ('{"a": 1}<think>better</think>{"a": 2, "b', None),
    ('```json\n{"a": 1}\n```\nIndices run over [0, len(', None),
    ('```json\n{"a": 1}\n```\nCorrected:\n```json\n{"a": NaN}\n```\nThis is', None),
    ('```json\n{"a": 1,}\n```\nThis is', {"a": 1}),
    ('```json\n{"a": 1,}```\nThis is', {"a": 1}),
    ('```json\n{"a": 1, // c\n}\n```\nWithout the comment:\n```json\n{"a": 1}\n```\nThis is', {"a": 1}),
    ('{"a": 1}\nUse it:\n```python\nsend({"exam', {"a": 1}),
    ('{"a": 1}\nUse it:\n```\ncurl -d', {"a": 1}),
]

PIECES = [
    *["{", "[", '{"', "{'", "[]", "{{}", '{"a":1}', "</think>", "```\n", "[1 '", "(, "],
    *[
        '{"</think>"}',
        '{"</think>',
        "<think>[1]</think>",
        "<think>",
        "```json\n[1]\n",
        '```json\n{"',
        "[1] [[2]] ",
        "{a:",
        "x {a: ",
        'x {a: "',
        "x {a: ]",
        "x {a: '",
        "see [1], ",
        "x[1]",
        "```json\n{",
        "```\nx [1]\n```\n",
        "<think></think>{",
        "<think>{</think>",
        '<think>{"</think>',
        'x {"</think>"} ',
        'x {"\n```json\n[1]\n```\n"} ',
    ],
]

#: What models write behind the value: none of it is another value, and none of it shows that the value was a draft.
BEHIND = [
    "Note: the pattern `[\"']` matches quotes.",
    "The range is [-π, π).",
    "Indices run over [0, len(s)).",
    "It covers [2024-01-01, 2024-12-31).",
    'JSON objects begin with `{"`.',
    'They begin with `{"` and end with `"}`.',
    "See x[1:",
    "The log:\n```text\n[2024-01-01 10:00:00] ERROR it failed\n```",
    "The log:\n```\n[12:30:45] ERROR disk full\n```",
    'Run:\n```\n[ "$x" = 1 ] && echo ok\n```',
    "Run:\n```\n[ -f x && echo it's\n```",
    "```\n[-] todo\n```",
    "```\n{# comment #}\n```",
    "In Python:\n```\n{'a': 1}\n```",
    'The format:\n```json\n{"a": <int>}\n```',
    'With comments:\n```jsonc\n{\n  // it\'s the count\n  "a": 1\n}\n```',
    'You can extend it:\n```json\n{"a": 1, ...}\n```',
    'The format is {"a": <int>}, see [1].',
]


@pytest.mark.parametrize(("raw", "value"), AS_IT_STANDS)
def test_a_right_value_is_found_in_what_surrounds_it(raw: str, value: object) -> None:
    assert parse_strict(raw) == value
    assert parse_loose(raw) == (True, value)


@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize(
    "value", ['```json\n{"a": 1}\n```', '```\n{"a": 1}\n```', '{"a": 1}', 'Here is the JSON: {"a": 1}']
)
def test_what_follows_the_value_does_not_void_it(value: str, behind: str) -> None:
    raw = f"{value}\n\n{behind}"
    assert parse_strict(raw) == {"a": 1}
    assert parse_loose(raw) == (True, {"a": 1})


@pytest.mark.parametrize(("raw", "value"), MENDED)
def test_loose_mends_what_strict_refuses(raw: str, value: object) -> None:
    assert parse_loose(raw) == (True, value)
    with pytest.raises(AnswerError):
        parse_strict(raw)


@pytest.mark.parametrize("raw", UNPARSED)
def test_nothing_is_guessed(raw: str) -> None:
    assert parse_loose(raw) == (False, None)
    with pytest.raises(AnswerError) as caught:
        parse_strict(raw)
    assert 0 < len(str(caught.value)) < 300


@pytest.mark.parametrize(("raw", "value"), CUT)
def test_a_cut_answer_has_no_value_where_something_is_never_closed(raw: str, value: object) -> None:
    assert parse_loose(raw, is_cut=True) == (value is not None, value)


@pytest.mark.parametrize("piece", PIECES)
def test_work_grows_with_the_length_alone(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = 0
    loads = loads_strict

    def counted(text: str) -> object:
        nonlocal parsed
        parsed += len(text)
        return loads(text)

    monkeypatch.setattr(structured, "loads_strict", counted)
    monkeypatch.setattr(json_mending, "loads_strict", counted)
    text = piece * (200_000 // len(piece))
    parse_loose(text)
    # The whole twice, as it is and mended, and then each piece of it: as a fenced block, and by its brackets.
    assert parsed <= 6 * len(text)


@pytest.mark.parametrize("piece", PIECES)
def test_brackets_are_looked_at_a_few_times_at_most(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0
    tokens = structured._tokens

    def counted(text: str, start: int) -> Iterator[tuple[str, int, int]]:
        nonlocal looked_at
        for token in tokens(text, start):
            looked_at += 1
            yield token

    monkeypatch.setattr(structured, "_tokens", counted)
    text = piece * (200_000 // len(piece))
    parse_loose(text)
    # Twice for tags, twice for fences, and at last for the pieces: in a block, and in what stands around blocks.
    assert looked_at <= 6 * len(text)


@pytest.mark.parametrize("piece", ['\\"', "\\'", '"\\', "[' ", r"\"a\": [\"b\"], ", "'a' ", ", ", "it's ", "True "])
@pytest.mark.parametrize("start", ["{", "[", "[{", '{"a": '])
def test_mending_takes_time_in_proportion_to_the_length(start: str, piece: str) -> None:
    def took(length: int) -> float:
        text = start + piece * (length // len(piece))
        times = []
        for _ in range(5):
            began = time.process_time()
            parse_loose(text)
            times.append(time.process_time() - began)
        return min(times)

    # Sixteen times the length; it would be 256 times the time if each quote were looked at from every other.
    assert took(64_000) < 64 * took(4_000)


def test_the_pieces_looked_at_never_overlap() -> None:
    text = 'a [1] {"b": [2]} {c} [x] {"d": {}}'
    assert list(structured.spans(text)) == ["[1]", '{"b": [2]}', '{"d": {}}']
