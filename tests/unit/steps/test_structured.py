from __future__ import annotations

import pytest

from pipeline_engine.jsontext import loads_strict
from pipeline_engine.steps import structured
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
]
MENDED: list[tuple[str, object]] = [
    ('{"a":[1,2,],}', {"a": [1, 2]}),
    ("{'a':1}", {"a": 1}),
    ('{"t":"a\nb"}', {"t": "a\nb"}),
    ("{'a': True, 'b': [None, False]}", {"a": True, "b": [None, False]}),
    ('Sure! Here it is: {"a": [1, 2,],} Hope it helps.', {"a": [1, 2]}),
    ("{'a': 'it\\'s \"x\" , }'}", {"a": 'it\'s "x" , }'}),
    ('{"a": "None, True,]",}', {"a": "None, True,]"}),
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
    "[" * 100_000,
    "[" * 100_000 + "]" * 100_000,
]


@pytest.mark.parametrize(("raw", "value"), AS_IT_STANDS)
def test_a_right_value_is_found_in_what_surrounds_it(raw: str, value: object) -> None:
    assert parse_strict(raw) == value
    assert parse_loose(raw) == (True, value)


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


@pytest.mark.parametrize("piece", ["{", "[", '{"', "{'", "[]", "{{}", '{"a":1}', "</think>", "```\n", "[1 '", "(, "])
def test_work_grows_with_the_length_alone(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = 0
    loads = loads_strict

    def counted(text: str) -> object:
        nonlocal parsed
        parsed += len(text)
        return loads(text)

    monkeypatch.setattr(structured, "loads_strict", counted)
    text = piece * (200_000 // len(piece))
    parse_loose(text)
    # The whole twice, as it is and mended, and then each piece of it twice, for fences or for brackets.
    assert parsed <= 4 * len(text)


def test_the_pieces_looked_at_never_overlap() -> None:
    text = 'a [1] {"b": [2]} {c} [x] {"d": {}}'
    assert list(structured.spans(text)) == ["[1]", '{"b": [2]}', '{"d": {}}']
