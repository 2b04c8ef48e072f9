"""`pipeline-engine init`: a first pipeline to start from."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline_engine.cli.client import EXIT_REFUSED, fail, print_json

YAML_SUFFIXES = (".yaml", ".yml")
FIRST_PIPELINE = """\
# A first pipeline. Try it without a daemon, and without a model:
#
#     pipeline-engine run FILE --source note:me=FILE
#
type: first.v1                  # the name that jobs of a daemon call it by
version: "1"
description: Counts the words of each source and reports them.

steps:
  # One call for each source (fanout). A map step needs no model: here it renders a template for its source.
  - id: count
    name: Words
    kind: map
    mode: fanout
    config:
      map: template
      template: "{{ source.label }}: {{ source.content.split() | length }} words"

  # Runs when all that it depends on is done, and folds the items into one. Exported items are the job's result.
  - id: report
    name: Report
    kind: reduce
    depends_on: [count]
    config:
      reduce: concat
      separator: "\\n"
    export: true

  # A step that asks a model. To use it, take the comment signs away; `pipeline-engine providers list` shows the
  # profiles that there are.
  #
  # - id: summary
  #   kind: llm
  #   provider_profile_id: default-ollama
  #   depends_on: [report]
  #   prompt:
  #     system: You write one plain sentence.
  #     user: |
  #       What do these numbers tell? Answer in {{ options.language | default("English") }}.
  #       {{ previous.report[0].text }}
  #   export: true
"""


@click.command()
@click.argument("file", metavar="[FILE]", type=click.Path(path_type=Path), default=Path("first.yaml"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(file: Path, as_json: bool) -> None:
    """Write a first pipeline, with comments, to FILE (first.yaml). An existing file is left alone."""
    if file.suffix not in YAML_SUFFIXES:
        fail(
            f"{file} is not named as a YAML file, which it would be; name it {file.with_suffix('.yaml')}", EXIT_REFUSED
        )
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(FIRST_PIPELINE.replace("FILE", str(file)))
    except FileExistsError:
        fail(f"{file} is there already", EXIT_REFUSED)
    except OSError as exc:
        fail(f"{file} cannot be written: {exc.strerror}", EXIT_REFUSED)
    if as_json:
        print_json({"file": str(file)})
    else:
        click.echo(f"wrote {file}; try: pipeline-engine run {file} --source note:me={file}")
