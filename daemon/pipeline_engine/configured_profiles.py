"""Provider profiles as configuration files give them, with their keys fetched from where the file says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline_engine.decoding import Secret
from pipeline_engine.errors import Problem
from pipeline_engine.models import FrozenWire, ProviderKind, ProviderProfile
from pipeline_engine.providers.addresses import normalise_base_uri


class KeyringEntry(FrozenWire, frozen=True, kw_only=True):
    """Under which names the keyring of the desktop has a key."""

    service: str
    user: str


class FileProfile(ProviderProfile, frozen=True, kw_only=True):
    """A profile whose key may also be named: the variable, the file, or the entry of a keyring that holds it."""

    api_key_env: str | None = None
    api_key_file: str | None = None
    api_key_keyring: KeyringEntry | None = None


class KeyringMissingError(Exception):
    """The extra `keyring` is not installed."""


class KeyFileError(Exception):
    """A file that should hold a key and does not; the message says why."""


def read_key_file(file: Path) -> Secret:
    """The text of the file without the white space around it. Raises KeyFileError."""
    try:
        key = file.read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise KeyFileError(f"{file} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise KeyFileError(f"{file} does not hold a key: it is not text") from exc
    if not key:
        raise KeyFileError(f"{file} is empty")
    return Secret(key)


def read_keyring_key(entry: KeyringEntry) -> tuple[Secret | None, str]:
    """The key, or None and why there is none. May ask the user to unlock the keyring. Raises KeyringMissingError."""
    try:
        import keyring  # noqa: PLC0415 - of an extra, and slow to import
        import keyring.errors  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        raise KeyringMissingError("needs the extra keyring: pip install 'pipeline-engine[keyring]'") from exc
    try:
        key = keyring.get_password(entry.service, entry.user)
    except keyring.errors.NoKeyringError:
        return None, "no keyring can be reached from here"
    except Exception as exc:  # noqa: BLE001 - a backend may raise what its library does, and its words may be anything
        return None, f"the keyring failed ({type(exc).__name__})"
    if key is None or not key.strip():
        return None, f"the keyring has no such entry; make it with: keyring set {entry.service} {entry.user}"
    return Secret(key.strip()), ""


def read_profile(
    given: FileProfile, *, path: str, locate: Callable[[str], Path], environ: Mapping[str, str]
) -> tuple[ProviderProfile, list[Problem], list[Problem]]:
    """The profile, what makes it unusable, and what the user should hear of.

    `path` is where it stands in its file; `locate` turns a path that is written there into one that can be opened, or
    raises ValueError.
    """
    problems: list[Problem] = []
    warnings: list[Problem] = []
    base_uri = given.base_uri
    if given.kind is ProviderKind.LOCAL_TOOL:
        if not given.extra.command:
            problems.append(Problem(f"{path}.extra.command", "is required for a profile of the kind local_tool"))
    elif base_uri:
        try:
            base_uri = normalise_base_uri(base_uri)
        except ValueError as exc:
            problems.append(Problem(f"{path}.base_uri", str(exc).removeprefix("base_uri ")))
    if given.extra.server is not None:
        place = f"{path}.extra.server"
        if given.kind is ProviderKind.LOCAL_TOOL:
            problems.append(Problem(place, "is for model servers; a tool is started anew for each call"))
        try:
            normalise_base_uri(given.extra.server.ready)
        except ValueError as exc:
            problems.append(Problem(f"{place}.ready", str(exc).removeprefix("base_uri ")))
        if "://" not in given.extra.server.ready:
            problems.append(Problem(f"{place}.ready", "must begin with http:// or https://"))
    sources = ("api_key", "api_key_env", "api_key_file", "api_key_keyring")
    names = [name for name in sources if getattr(given, name) is not None]
    if len(names) > 1:
        problems.append(Problem(f"{path}.{names[1]}", f"only one of {' and '.join(names)} can be given"))
    key = given.api_key
    if given.api_key_env is not None:
        # A key that is missing here need not be missed: the profile may never be used.
        value = environ.get(given.api_key_env, "").strip()
        key = Secret(value) if value else None
        if key is None:
            words = f"the environment variable {given.api_key_env} is not set, so the profile has no key"
            warnings.append(Problem(f"{path}.api_key_env", words))
    elif given.api_key_file is not None:
        try:
            key = read_key_file(locate(given.api_key_file))
        except (KeyFileError, ValueError) as exc:
            problems.append(Problem(f"{path}.api_key_file", str(exc)))
    elif given.api_key_keyring is not None:
        try:
            key, words = read_keyring_key(given.api_key_keyring)
        except KeyringMissingError as exc:
            problems.append(Problem(f"{path}.api_key_keyring", str(exc)))
        else:
            # As with a variable: the profile may never be used, and a keyring may be locked.
            if key is None:
                warnings.append(Problem(f"{path}.api_key_keyring", f"{words}, so the profile has no key"))
    profile = ProviderProfile(
        id=given.id,
        kind=given.kind,
        base_uri=base_uri,
        api_key=key,
        default_model=given.default_model,
        extra=given.extra,
    )
    return profile, problems, warnings
