"""`pipeline-engine config`: the settings in force, and where each comes from."""

from __future__ import annotations

import os
from pathlib import Path

import click
import msgspec

from pipeline_engine.cli.client import print_json, print_table
from pipeline_engine.config_loader import load_config
from pipeline_engine.redaction import without_secrets


@click.group()
def command() -> None:
    """The configuration, as `serve` would read it here."""


@command.command("show")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="A configuration file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_config(config_file: Path | None, as_json: bool) -> None:
    """Show every setting with its value and its origin: a file and line, a variable, or the default. No secrets."""
    config = load_config(environ=os.environ, config_file=config_file)
    settings = {
        name: {"value": value, "origin": config.origins.get(name, "default")}
        for name, value in config.settings().items()
    }
    settings["api_key"] = {
        "value": "set" if config.api_key is not None else None,
        "origin": config.origins.get("api_key", "default"),
    }
    for profile in config.providers.values():
        name = f"providers.{profile.id}"
        value = f"{profile.kind} {without_secrets(profile.base_uri)}".strip()
        settings[name] = {"value": value, "origin": config.origins.get(name, "default")}
    for handler, place in config.handlers.items():
        name = f"handlers.{handler}"
        settings[name] = {"value": place, "origin": config.origins.get(name, "default")}
    if as_json:
        print_json({"settings": settings, "files": [str(file) for file in config.files]})
    else:
        rows = [
            (name, msgspec.json.encode(entry["value"]).decode(), entry["origin"]) for name, entry in settings.items()
        ]
        print_table(("SETTING", "VALUE", "FROM"), rows)
