from __future__ import annotations

import pytest

from pipeline_engine.cli.go_templates import convert_template


@pytest.mark.parametrize(
    ("go", "ours"),
    [
        ("{{range .Sources}}{{.Content}}{{end}}", "{% for source in sources %}{{ source.content }}{% endfor %}"),
        (
            "{{ range $i, $s := .Sources }}{{$i}}: {{ $s.Label }}\n{{- end }}",
            "{% for s in sources %}{% set i = loop.index0 %}{{ i }}: {{ s.label }}\n{%- endfor %}",
        ),
        (
            '{{if eq .Options.Language "de"}}a{{else if gt (len .Sources) 3}}b{{else}}c{{end}}',
            '{% if options.language == "de" %}a{% elif (sources | length) > 3 %}b{% else %}c{% endif %}',
        ),
        ("{{with .Source}}{{.Content}}{{end}}", "{% if source %}{{ source.content }}{% endif %}"),
        ("{{.Options.MaxTokens}} {{/* note */}}", "{{ options.max_tokens }} {# note #}"),
        ("{{range .Sources}}{{$.Options.X}}{{end}}", "{% for source in sources %}{{ options.x }}{% endfor %}"),
        ("{{$x := .Job.ID}}{{$x}}", "{% set x = job.id %}{{ x }}"),
        ('{{ join .Tags ", " | upper }}', '{{ tags | join(", ") | upper }}'),
        ("{{ index .Sources 0 }}", "{{ sources[0] }}"),
        ('{{ "a}}b" }}', '{{ "a}}b" }}'),
        ("100 {% of it {# all", '100 {{ "{%" }} of it {{ "{#" }} all'),
    ],
)
def test_what_both_languages_can_say_is_translated(go: str, ours: str) -> None:
    conversion = convert_template(go)
    assert (conversion.text, conversion.problems) == (ours, [])


@pytest.mark.parametrize(
    "action",
    [
        '{{template "x"}}',
        '{{ printf "%d" 3 }}',
        '{{ .Foo.Bar "x" }}',
        "{{ $unknown }}",
        "{{end}}",
        "{{.}}",
        "{{if .A}}{{$x = 1}}{{end}}",
        '{{ "\\u00e9" }}',
        "{{ (len .Sources }}",
    ],
)
def test_what_has_no_certain_translation_is_named_and_left_as_a_comment(action: str) -> None:
    conversion = convert_template(action)
    assert len(conversion.problems) == 1
    assert "{# not converted: " in conversion.text


def test_a_block_that_does_not_end_is_named() -> None:
    assert convert_template("{{range .Sources}}x").problems == ["{{range}} has no {{end}}"]


def test_a_loop_in_a_loop_has_a_name_of_its_own() -> None:
    go = "{{range .Sources}}{{range .Sources}}{{.}}{{end}}{{.Kind}}{{end}}"
    inner = "{% for source2 in source.sources %}{{ source2 }}{% endfor %}"
    assert convert_template(go).text == f"{{% for source in sources %}}{inner}{{{{ source.kind }}}}{{% endfor %}}"
