"""Where keys come from: files, variables, systemd, the keyring."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import keyring
import keyring.backend
import keyring.errors
import pytest
from tests.config_setting import load, refusal

from pipeline_engine.decoding import Secret


def test_the_api_key_comes_from_the_first_place_that_has_one(home: Path) -> None:
    (home / "key").write_text(" from-file\n", encoding="utf-8")
    (home / "credentials").mkdir()
    credentials = str(home / "credentials")
    assert load(home, CREDENTIALS_DIRECTORY=credentials).api_key is None
    (home / "credentials/api_key").write_text("from-systemd\n", encoding="utf-8")
    assert load(home, CREDENTIALS_DIRECTORY=credentials).api_key == Secret("from-systemd")
    file = str(home / "key")
    config = load(home, CREDENTIALS_DIRECTORY=credentials, PIPELINE_ENGINE_API_KEY_FILE=file)
    assert (config.api_key, config.origins["api_key"]) == (
        Secret("from-file"),
        "environment PIPELINE_ENGINE_API_KEY_FILE",
    )
    config = load(home, PIPELINE_ENGINE_API_KEY="from-variable", PIPELINE_ENGINE_API_KEY_FILE=file)
    assert config.api_key == Secret("from-variable")
    assert "from-variable" not in repr(config)


def test_a_credential_that_cannot_be_read_is_refused(home: Path) -> None:
    (home / "api_key").mkdir()
    assert refusal(home, CREDENTIALS_DIRECTORY=str(home)) == (
        f"environment: CREDENTIALS_DIRECTORY: {home}/api_key cannot be read: Is a directory"
    )


def test_an_empty_key_file_is_refused(home: Path) -> None:
    (home / "key").write_text("\n", encoding="utf-8")
    assert "is empty" in refusal(home, PIPELINE_ENGINE_API_KEY_FILE=str(home / "key"))


def test_a_profile_takes_its_key_from_the_file_a_variable_or_another_file(home: Path) -> None:
    (home / "key").write_text("k3\n", encoding="utf-8")
    config = load(
        home,
        '[[providers]]\nid = "a"\nkind = "openai"\napi_key = "k1"\n'
        '[[providers]]\nid = "b"\nkind = "openai"\napi_key_env = "B_KEY"\n'
        '[[providers]]\nid = "c"\nkind = "openai"\napi_key_file = "key"\n'
        '[[providers]]\nid = "d"\nkind = "openai"\napi_key_env = "D_KEY"\n',
        B_KEY="k2",
    )
    keys = [config.providers[name].api_key for name in "abcd"]
    assert keys == [Secret("k1"), Secret("k2"), Secret("k3"), None]
    (warning,) = config.warnings
    assert warning.startswith(f"{home}/config.toml: line 16: providers[3].api_key_env: ")
    assert "D_KEY" in warning
    assert "k1" not in repr(config)


class FakeKeyring(keyring.backend.KeyringBackend):
    priority = 1

    def __init__(self, *, broken: bool = False, missing: bool = False) -> None:
        self._broken = broken
        self._missing = missing

    def get_password(self, service: str, username: str) -> str | None:
        if self._missing:  # as the backend of a machine without any
            raise keyring.errors.NoKeyringError
        if self._broken:
            raise keyring.errors.KeyringLocked("the user said no to sk-in-the-ring")
        return " sk-in-the-ring\n" if (service, username) == ("engine", "me") else None

    def set_password(self, service: str, username: str, password: str) -> None:
        raise NotImplementedError


@pytest.fixture
def use_keyring() -> Iterator[Callable[[keyring.backend.KeyringBackend], None]]:
    before = keyring.get_keyring()
    yield keyring.set_keyring
    keyring.set_keyring(before)


def from_keyring(user: str, more: str = "") -> str:
    entry = f'api_key_keyring = {{ service = "engine", user = "{user}" }}'
    return f'[[providers]]\nid = "p"\nkind = "openai"\n{entry}\n{more}'


def test_a_key_may_be_in_a_keyring(home: Path, use_keyring: Callable[[keyring.backend.KeyringBackend], None]) -> None:
    use_keyring(FakeKeyring())
    config = load(home, from_keyring("me"))
    assert config.providers["p"].api_key == Secret("sk-in-the-ring")
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("backend", "user", "words"),
    [
        (FakeKeyring(), "you", "the keyring has no such entry; make it with: keyring set engine you"),
        (FakeKeyring(broken=True), "me", "the keyring failed (KeyringLocked)"),
        (FakeKeyring(missing=True), "me", "no keyring can be reached from here"),
    ],
)
def test_a_key_that_the_keyring_does_not_give_is_warned_of(
    home: Path,
    use_keyring: Callable[[keyring.backend.KeyringBackend], None],
    backend: keyring.backend.KeyringBackend,
    user: str,
    words: str,
) -> None:
    use_keyring(backend)
    config = load(home, from_keyring(user))
    assert config.providers["p"].api_key is None
    [warning] = config.warnings
    assert warning.endswith(f"providers[0].api_key_keyring: {words}, so the profile has no key")


def test_a_keyring_needs_its_extra_both_names_and_no_other_source(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "only one of api_key_env and api_key_keyring" in refusal(home, from_keyring("me", 'api_key_env = "X"'))
    assert "api_key_keyring.user: is required" in refusal(
        home, '[[providers]]\nid = "p"\nkind = "openai"\napi_key_keyring = { service = "engine" }\n'
    )
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert "api_key_keyring: needs the extra keyring: pip install 'pipeline-engine[keyring]'" in refusal(
        home, from_keyring("me")
    )
