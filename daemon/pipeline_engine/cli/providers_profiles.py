"""`pipeline-engine providers list` and `set`: the profiles of the daemon."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from pipeline_engine.cli.client import client_options, open_client, print_json, print_table
from pipeline_engine.jsontext import JsonTextError, loads_strict


@click.command("list")
@client_options
def list_providers(url: str | None, as_json: bool) -> None:
    """List the provider profiles, without their secrets."""
    with open_client(url) as client:
        providers = client.list_providers()
    if as_json:
        # In full: a program that reads it should not have to know which values are the usual ones.
        print_json({"providers": [{**one.to_dict(), "api_key_set": one.api_key_set} for one in providers]})
    else:
        rows = [(one.id, one.kind, one.base_uri, one.default_model, _yes(one.api_key_set)) for one in providers]
        print_table(("PROFILE", "KIND", "ADDRESS", "MODEL", "KEY"), rows)


@click.command("set")
@click.argument("profile_id", metavar="ID")
@click.option("--kind", type=click.Choice(["openai", "ollama", "image"]), help="Needed for a new profile.")
@click.option("--base-uri", metavar="URL", help="The address of the model server.")
@click.option("--model", "default_model", metavar="NAME", help="The model, where a step names none.")
@click.option(
    "--api-key-env", metavar="VARIABLE", help="Take the key from this variable of this command's environment."
)
@click.option(
    "--api-key-file", metavar="FILE", type=click.Path(path_type=Path), help="Take the key from this file, now."
)
@click.option("--extra", metavar="JSON", help="More settings, as in '{\"timeout_s\": 120}'.")
@client_options
def set_provider(
    profile_id: str,
    kind: str | None,
    base_uri: str | None,
    default_model: str | None,
    api_key_env: str | None,
    api_key_file: Path | None,
    extra: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Add a provider profile, or change what is given of one.

    A key is never an argument: every user of the machine can see those. It stays with the daemon, unless the address
    moves to another server; so do headers that are not given.
    """
    given: dict[str, Any] = {"kind": kind, "base_uri": base_uri, "default_model": default_model}
    given["extra"] = _extra(extra)
    changes = {name: value for name, value in given.items() if value is not None}
    if (key := _key(api_key_env, api_key_file)) is not None:
        changes["api_key"] = key
    with open_client(url) as client:
        known = {one.id: _without_headers(one.to_dict()) for one in client.list_providers()}
        profile = {**known.get(profile_id, {}), **changes, "id": profile_id}
        stored = client.upsert_provider_profile(profile)
    if as_json:
        print_json(stored)
    else:
        click.echo(f"{stored.id}  {stored.kind}  {stored.base_uri}  {stored.default_model}")


def _without_headers(profile: dict[str, Any]) -> dict[str, Any]:
    """The profile without its headers: they are shown hidden, and those that are left out stay, where they may."""
    extra = {name: value for name, value in profile.get("extra", {}).items() if name != "headers"}
    return {**profile, "extra": extra}


def _extra(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = loads_strict(text)
    except JsonTextError as exc:
        raise click.BadParameter(f"--extra is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise click.BadParameter("--extra is not a JSON object")
    return value


def _key(variable: str | None, file: Path | None) -> str | None:
    if variable is not None:
        key = os.environ.get(variable)
        if not key:
            raise click.BadParameter(f"the variable {variable} is not set")
        return key
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise click.BadParameter(f"cannot read {file}: {exc}") from exc
    return None


def _yes(value: bool) -> str:
    return "yes" if value else "no"
