"""`pipeline-engine convert`: definitions and templates of version 0.2 with our templates in them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import yaml

from pipeline_engine.cli.client import EXIT_REFUSED, fail, print_json
from pipeline_engine.cli.definition_files import read_definitions
from pipeline_engine.cli.display import printable
from pipeline_engine.cli.go_templates import convert_template
from pipeline_engine.documents import SUFFIXES


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write here instead of to standard output.")
@click.option("--json", "as_json", is_flag=True, help='Print {"result", "problems"}.')
def command(file: Path, output: Path | None, as_json: bool) -> None:
    """Translate the Go templates in a pipeline definition of version 0.2 (YAML, JSON, TOML), or in a file of any other
    name, which is one template. What cannot be translated is left as a comment, and listed on standard error.

    Exit codes: 0 all was translated, 1 something was not, 2 the file cannot be read.
    """
    problems: list[str] = []
    if file.suffix.lower() in SUFFIXES:
        converted: list[dict[str, Any]] = [_definition(one.value, problems) for one in read_definitions(str(file))]
        value: Any = converted[0] if len(converted) == 1 else converted
        text = str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100))
    else:
        value = text = _template(_read(file), "", problems)
    if output is not None:
        _write(output, text)
    if as_json:
        print_json({"result": value, "problems": problems})
    elif output is None:
        sys.stdout.write(text)
    for problem in problems:
        click.echo(printable(f"not converted: {problem}"), err=True)
    sys.exit(1 if problems else 0)


def _definition(definition: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """The definition with its prompts translated: the only place where version 0.2 had templates."""
    steps = definition.get("steps")
    if not isinstance(steps, list):
        return definition
    return {**definition, "steps": [_step(step, f"steps[{index}]", problems) for index, step in enumerate(steps)]}


def _step(step: Any, where: str, problems: list[str]) -> Any:
    prompt = step.get("prompt") if isinstance(step, dict) else None
    if not isinstance(prompt, dict):
        return step
    texts = {
        key: _template(text, f"{where}.prompt.{key}: ", problems)
        for key, text in prompt.items()
        if key in ("system", "user") and isinstance(text, str)
    }
    return {**step, "prompt": {**prompt, **texts}}


def _template(text: str, where: str, problems: list[str]) -> str:
    conversion = convert_template(text)
    problems += [where + problem for problem in conversion.problems]
    return conversion.text


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as exc:
        fail(f"{file}: cannot be read: {exc.strerror}", EXIT_REFUSED)
    except UnicodeDecodeError:
        fail(f"{file}: is not UTF-8", EXIT_REFUSED)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as exc:
        fail(f"{file}: cannot be written: {exc.strerror}", EXIT_REFUSED)
