from __future__ import annotations

import time

import pytest

from pipeline_engine.documents import parse_document
from pipeline_engine.errors import InvalidRequestError, Problem


def problems_of(text: str | bytes, name: str) -> list[Problem]:
    with pytest.raises(InvalidRequestError) as caught:
        parse_document(text, name=name)
    assert caught.value.source == name
    return list(caught.value.problems)


def yaml_value(text: str) -> object:
    return parse_document(text, name="p.yaml").value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("NO", "NO"),
        ("2026-01-31", "2026-01-31"),
        ("2026-01-31T09:00:00Z", "2026-01-31T09:00:00Z"),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("0b101", "0b101"),
        ("1.2.3", "1.2.3"),
        ("08.08.2026", "08.08.2026"),
        ("00:30", "00:30"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("!!str 12", "12"),
        ("null", None),
        ("~", None),
        ("", None),
        ("true", True),
        ("FALSE", False),
        ("tRUE", "tRUE"),
        ("12", 12),
        ("-0", 0),
        ("+7", 7),
        ("0o17", 15),
        ("0x1F", 31),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("0.5", 0.5),
        ("18446744073709551616", 18446744073709551616),
    ],
)
def test_yaml_scalars_follow_the_core_schema(text: str, value: object) -> None:
    read = yaml_value(f"key: {text}\n")
    assert read == {"key": value}
    assert isinstance(read, dict)
    assert type(read["key"]) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "path", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "a", "stands here twice (first on line 1)"),
        ("a: {b: 1, b: 2}\n", 1, "a.b", "twice"),
        ("a: 1\n'a': 2\n", 2, "a", "twice"),
        ("steps:\n- x: .nan\n", 2, "steps[0].x", "not a JSON number"),
        ("a: -.inf\n", 1, "a", "not a JSON number"),
        ("a: 1e999\n", 1, "a", "too large"),
        ("a: 007\n", 1, "a", "ambiguous: quote it"),
        ("a: 010.5\n", 1, "a", "ambiguous: quote it"),
        ("a: !!python/object/apply:os.system ['id']\n", 1, "a", "python/object/apply:os.system is not supported"),
        ("a: !env HOME\n", 1, "a", "!env is not supported"),
        ("a: !!binary aGk=\n", 1, "a", "binary is not supported"),
        ("a: ! 12\n", 1, "a", "! is not supported"),
        ("base: &b {x: 1}\nother:\n  <<: *b\n", 3, "other.<<", "merge keys"),
        ("a:\n  1: x\n", 2, "a.1", "quote it"),
        ("true: x\n", 1, "true", "quote it"),
        ("~: x\n", 1, "~", "quote it"),
        ("? [a, b]\n: c\n", 1, "", "a key must be a plain text"),
        ("steps:\n- prompt: {user: {{ x }}}\n", 2, "steps[0].prompt.user", "a template that begins with {{ in quotes"),
        ("a: 1\nwhen: {{ x }}\n", 2, "when", "leave the braces out of an expression"),
        ("a: 1\r\nb: {% if x %}y{% endif %}\n", 2, "", "a text that begins with {% in quotes"),
        ("a: %x\n", 1, "", "a text that begins with % in quotes"),
        ("a: [x, @y]\n", 1, "", "a text that begins with @ in quotes"),
        ("a: `x`\n", 1, "", "a text that begins with ` in quotes"),
        ("a: *bold* text\n", 1, "", "a text that begins with * in quotes"),
        ("a: Hello: {{ x }}\n", 1, "", 'a text that holds ": " in quotes'),
        ('a: "{{ x["y"] }}"\n', 1, "", "ends before that"),
        ('a: "{{ x }}" and\n', 1, "", "ends before that"),
        ("a: {# x #}", 2, "", "not valid YAML"),
        ("a:\n\tb: 1\n", 2, "", "spaces, not with tabs"),
        ('a: 1\nb: "{{ x\nc: 2\n', 4, "", "that open on line 2 are never closed"),
        ("a: 1\n---\nb: 2\n", 2, "", "one YAML document"),
        ("a: &x [*x]\n", 1, "a[0]", "inside its own anchor"),
        ("a: *nowhere\n", 1, "a", "nowhere"),
        ("a: [1,\n2\nb: 3\n", 3, "", "not valid YAML"),
        ("a: 'x\n", 2, "", "not valid YAML"),
        ("ok: 1\na: \x07\n", 2, "", "U+0007"),
        ('ok: 1\na: "x\u2028y"\n', 2, "", "U+2028"),
        ("a: x\u0085y\n", 1, "", "U+0085"),
        ("[" * 101 + "]" * 101, 1, "[0]" * 100, "nested deeper than 100"),
        ("a: " + "9" * 2000, 1, "a", "too long"),
    ],
)
def test_yaml_that_is_ambiguous_or_broken_is_refused_with_its_place(
    text: str, line: int, path: str, words: str
) -> None:
    problem = problems_of(text, "p.yaml")[-1]
    assert (problem.line, problem.path) == (line, path)
    assert words in problem.message


def test_a_yaml_key_that_reads_like_a_word_of_yaml_1_1_is_a_text() -> None:
    assert yaml_value("on: 1\nno: 2\n'1': 3\n'<<': 4\n") == {"on": 1, "no": 2, "1": 3, "<<": 4}


def test_all_problems_of_a_yaml_document_come_at_once() -> None:
    found = problems_of("a: 007\nb: .nan\nc: !x 1\n1: d\n", "p.yaml")
    assert [(problem.line, problem.path) for problem in found] == [(1, "a"), (2, "b"), (3, "c"), (4, "1")]


def test_yaml_aliases_give_values_of_their_own() -> None:
    value = yaml_value("a: &x {list: [1, 2]}\nb: *x\n")
    assert value == {"a": {"list": [1, 2]}, "b": {"list": [1, 2]}}
    assert isinstance(value, dict)
    assert value["a"]["list"] is not value["b"]["list"]


def test_an_alias_bomb_is_refused_quickly() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
    )
    started = time.perf_counter()
    assert "more than 100000 values" in problems_of(text, "bomb.yaml")[-1].message
    assert time.perf_counter() - started < 5


def test_aliases_do_not_get_around_the_depth_limit() -> None:
    inner = "[" * 60 + "]" * 60
    text = f"a: &x {inner}\nb: {'[' * 50}*x{']' * 50}\n"
    assert "nested deeper" in problems_of(text, "deep.yaml")[-1].message


def test_yaml_keeps_block_texts_as_they_stand() -> None:
    assert yaml_value("a: |\n  one\n  two\n\nb: >-\n  x\n  y\n") == {"a": "one\ntwo\n", "b": "x y"}


def test_an_empty_document_is_null() -> None:
    assert yaml_value("# nothing\n") is None


@pytest.mark.parametrize("name", ["p.yaml", "p.yml", "P.YAML"])
def test_yaml_lines_name_each_key_and_element(name: str) -> None:
    document = parse_document(
        "type: t\nsteps:\n  - id: a\n    prompt:\n      user: |\n        hi\n  - id: b\n", name=name
    )
    assert document.lines == {
        "type": 1,
        "steps": 2,
        "steps[0]": 3,
        "steps[0].id": 3,
        "steps[0].prompt": 4,
        "steps[0].prompt.user": 5,
        "steps[1]": 7,
        "steps[1].id": 7,
    }


def test_the_line_of_a_path_that_is_not_there_is_that_of_what_surrounds_it() -> None:
    document = parse_document("steps:\n  - id: a\n    prompt: {}\n", name="p.yaml")
    assert document.line_of("steps[0].prompt.meta.messages[1]") == 3
    assert document.line_of("steps[0].kind") == 2
    assert document.line_of("type") is None


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_json_lines_name_each_key_and_element() -> None:
    text = '{"type": "t",\n "steps": [\n  {"id": "a",\n   "n": [1, {"x": "]}\\""}]},\n  3\n ]}'
    document = parse_document(text, name="p.json")
    assert document.value == {"type": "t", "steps": [{"id": "a", "n": [1, {"x": ']}"'}]}, 3]}
    assert document.lines == {
        "type": 1,
        "steps": 2,
        "steps[0]": 3,
        "steps[0].id": 3,
        "steps[0].n": 4,
        "steps[0].n[0]": 4,
        "steps[0].n[1]": 4,
        "steps[0].n[1].x": 4,
        "steps[1]": 5,
    }


@pytest.mark.parametrize(
    ("text", "line", "path", "words"),
    [
        ('{"a": 1,\n "b": {"c": 1,\n "c": 2}}', 3, "b.c", "twice"),
        ('{"a": 1,\n "\\u0061": 2}', 2, "a", "twice"),
        ('{"a":\n NaN}', 1, "a", "finite"),
        ("[1,\n -Infinity]", 2, "[1]", "finite"),
        ('{"a": 1e999}', 1, "a", "finite"),
        ('{"a": "\\ud800"}', 1, "a", "surrogate"),
        ('{"\\udc00": 1}', None, "", "surrogate"),
        ('{\n"a" 1\n}', 2, "", "not valid JSON"),
        ("", 1, "", "not valid JSON"),
        ("[" * 101 + "]" * 101, 1, "[0]" * 100, "nested deeper than 100"),
        ("[" * 200_000, None, "", "nested too deeply"),
        ("9" * 5000, None, "", "cannot be read"),
    ],
)
def test_json_that_is_ambiguous_or_broken_is_refused_with_its_place(
    text: str, line: int | None, path: str, words: str
) -> None:
    problem = problems_of(text, "p.json")[0]
    assert (problem.line, problem.path) == (line, path)
    assert words in problem.message


def test_a_json_syntax_error_names_its_column() -> None:
    assert "column 3" in problems_of('{"a": 1,\n  b}', "p.json")[0].message


# --- TOML -------------------------------------------------------------------------------------------------------------

TOML = '''\
# a pipeline
type = "t.v1"  # its name

[limits]
max_provider_calls = 3

[[steps]]
id = "a"
depends_on = [
  "x", # [not a header]
  "y",
]
prompt = { user = "}", meta.n = 1 }
[steps.config]
template = """
[[steps]]
id = "not a key" ""\\"
"""
raw = \'\'\'
= \'\'\'
"odd key".'other' = 1

[[steps]]
id = "b"
[[steps.inner]]
k = 1
[[steps.inner]]
k = 2
'''


def test_toml_lines_name_each_key_and_element() -> None:
    document = parse_document(TOML, name="p.toml")
    assert document.lines == {
        "type": 2,
        "limits": 4,
        "limits.max_provider_calls": 5,
        "steps": 7,
        "steps[0]": 7,
        "steps[0].id": 8,
        "steps[0].depends_on": 9,
        "steps[0].depends_on[0]": 10,
        "steps[0].depends_on[1]": 11,
        "steps[0].prompt": 13,
        "steps[0].prompt.user": 13,
        "steps[0].prompt.meta": 13,
        "steps[0].prompt.meta.n": 13,
        "steps[0].config": 14,
        "steps[0].config.template": 15,
        "steps[0].config.raw": 19,
        "steps[0].config.odd key": 21,
        "steps[0].config.odd key.other": 21,
        "steps[1]": 23,
        "steps[1].id": 24,
        "steps[1].inner": 25,
        "steps[1].inner[0]": 25,
        "steps[1].inner[0].k": 26,
        "steps[1].inner[1]": 27,
        "steps[1].inner[1].k": 28,
    }


def test_toml_values_and_windows_line_ends() -> None:
    document = parse_document(TOML.replace("\n", "\r\n"), name="p.toml")
    assert isinstance(document.value, dict)
    assert document.value["steps"][0]["depends_on"] == ["x", "y"]
    assert document.lines["steps[1].inner[1].k"] == 28


@pytest.mark.parametrize(
    ("text", "line", "path", "words"),
    [
        ("[a]\nb = 2026-01-31\n", 2, "a.b", "dates and times are not supported"),
        ("a = [1, 12:30:00]\n", 1, "a[1]", "dates and times"),
        ("x = 1\na = nan\n", 2, "a", "finite"),
        ("a = { b = -inf }\n", 1, "a.b", "finite"),
        ("a = 1\na = 2\n", 2, "", "not valid TOML"),
        ("a = 1\n[limits\n", 2, "", "not valid TOML"),
        ("a = 1\nb = [1,\n", 3, "", "at the end of the file"),
        ("a = " + "9" * 5000, None, "", "cannot be read"),
        ("a = " + "[" * 5000, None, "", "nested too deeply"),
    ],
)
def test_toml_that_is_ambiguous_or_broken_is_refused_with_its_place(
    text: str, line: int | None, path: str, words: str
) -> None:
    problem = problems_of(text, "config.toml")[0]
    assert (problem.line, problem.path) == (line, path)
    assert words in problem.message


# --- all formats ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "text"), [("p.yaml", "a: é"), ("p.json", '{"a": "é"}'), ("p.toml", 'a = "é"')])
def test_text_is_utf_8_with_or_without_a_byte_order_mark(name: str, text: str) -> None:
    assert parse_document(text.encode(), name=name).value == {"a": "é"}
    assert parse_document(b"\xef\xbb\xbf" + text.encode(), name=name).value == {"a": "é"}
    assert parse_document("\ufeff" + text, name=name).value == {"a": "é"}


@pytest.mark.parametrize("name", ["p.yaml", "p.json", "p.toml"])
def test_other_bytes_are_refused_with_their_place(name: str) -> None:
    problem = problems_of("ok\nb: é".encode("latin-1"), name)[0]
    assert problem == Problem("", "not UTF-8: byte 0xe9 at offset 6", 2)
    assert "surrogate" in problems_of("a\ud800", name)[0].message


def test_an_unknown_suffix_is_refused() -> None:
    assert ".toml" in problems_of("a: 1", "pipeline.txt")[0].message
