"""The examples at the end of each command's help."""

from __future__ import annotations

import click

_JOB = "job_01m89fan1nekawfrp810jd8nt1"

#: Arguments of `pipeline-engine`, by the command that they call.
EXAMPLES = {
    "run": (
        "run first.yaml --source note:me=README.md",
        "run first.yaml --source 'note:docs/*.md'",
        "run first.yaml --source note:me=- --json < README.md",
    ),
    "serve": ("serve --pipelines-dir pipelines", "serve --addr 127.0.0.1:8085,unix:/run/user/1000/engine.sock"),
    "export": ("export --status succeeded -o jobs.ndjson",),
    "import": ("import jobs.ndjson",),
    "mcp": ("mcp --read-only",),
    "submit": (
        "submit first.v1 --source note:me=README.md --follow",
        "submit first.yaml --source note:me=README.md --label team=search",
    ),
    "follow": ("follow @last", f"follow {_JOB}"),
    "jobs": ("jobs list",),
    "jobs list": ("jobs list --status failed -n 5",),
    "jobs show": (f"jobs show {_JOB}", f"jobs show {_JOB[-5:]}"),
    "jobs cancel": (f"jobs cancel {_JOB} --reason 'the wrong file'",),
    "jobs rerun": (f"jobs rerun {_JOB} --reuse-upstream",),
    "jobs delete": (f"jobs delete {_JOB}",),
    "jobs top": ("jobs top",),
    "pipelines": ("pipelines validate first.yaml",),
    "pipelines list": ("pipelines list",),
    "pipelines show": ("pipelines show first.v1",),
    "pipelines validate": ("pipelines validate first.yaml second.yaml",),
    "pipelines graph": (
        "pipelines graph first.yaml --format text",
        "pipelines graph first.v1 --format dot | dot -Tsvg > first.svg",
    ),
    "pipelines put": ("pipelines put first.yaml",),
    "pipelines delete": ("pipelines delete first.v1",),
    "providers": ("providers test default-ollama",),
    "providers list": ("providers list",),
    "providers set": ("providers set mine --kind openai --base-uri http://127.0.0.1:8000/v1 --model small",),
    "providers test": ("providers test default-ollama",),
    "config": ("config show",),
    "config show": ("config show --config config.toml",),
    "init": ("init first.yaml",),
    "convert": ("convert old.yaml -o new.yaml",),
    "doctor": ("doctor", "doctor --url http://127.0.0.1:9000"),
    "systemd": ("systemd install --user --dry-run",),
    "systemd install": ("systemd install --user",),
    "systemd uninstall": ("systemd uninstall --user",),
}


def add_examples(command: click.Command, name: str) -> None:
    """Let the help of the command, and of those in it, end with their examples."""
    # \b: click would join the lines and wrap them.
    command.epilog = "\n".join(["\b", "Examples:", *(f"  pipeline-engine {line}" for line in EXAMPLES[name])])
    if isinstance(command, click.Group):
        for inner, one in command.commands.items():
            add_examples(one, f"{name} {inner}")
