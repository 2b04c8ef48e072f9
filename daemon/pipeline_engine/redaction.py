"""Hides the secrets that the daemon knows, by their value, wherever a text leaves it."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import unquote, urlsplit

from pipeline_engine.decoding import Secret
from pipeline_engine.errors import PipelineEngineError
from pipeline_engine.models import ProviderProfile

HIDDEN = "***"
MIN_LENGTH = 4  # characters; shorter ones would hide ordinary words, and are no secrets
MIN_LENGTH_BY_NAME = 8  # characters: of what only its name says to be a secret, so that `true` is never taken for one
MAX_WORDS = 10_000  # the oldest are forgotten: clients must not be able to fill the memory with headers

# The last word of a name counts: TOKENIZERS_PARALLELISM holds none.
_SECRET_NAME = re.compile(
    r"(?i)(.*[-_.])?(api|access)?[-_]?(key|token|secret|sig|signature|password|passwd|credentials?)"
)


class Redactor:
    """Knows secrets and replaces them. A secret that was replaced by another stays one."""

    def __init__(self) -> None:
        self._words: dict[str, None] = {}
        self._pattern: re.Pattern[str] | None = None

    def add(self, *secrets: Secret | None) -> None:
        for secret in secrets:
            if secret is not None:
                text = secret.reveal()
                # `Bearer KEY` is a secret, and so is the key in it alone.
                for word in (text, *text.split()):
                    self._add_word(word)

    def add_profile(self, profile: ProviderProfile) -> None:
        self.add(profile.api_key, *profile.extra.headers.values())
        for name, value in profile.extra.env.items():
            if _SECRET_NAME.fullmatch(name) and len(value) >= MIN_LENGTH_BY_NAME:
                self._add_word(value)
        self.add_address(profile.base_uri)

    def add_address(self, address: str) -> None:
        """Hear of the password in an address, and of the values in its query that are secrets by their names."""
        try:
            parts = urlsplit(address if "://" in address else f"//{address}")
        except ValueError:  # nobody can be reached there
            return
        found = [parts.password or "", *(value for _, value in _secret_parameters(parts.query))]
        for text in found:
            self._add_word(text)
            self._add_word(unquote(text))

    def _add_word(self, word: str) -> None:
        if len(word) < MIN_LENGTH or word in self._words or word.lower() in ("bearer", "basic"):
            return
        while len(self._words) >= MAX_WORDS:
            del self._words[next(iter(self._words))]
        self._words[word] = None
        self._pattern = None

    def redact(self, text: str) -> str:
        """The text with `***` in place of each secret, also of those that are written as in a JSON or Python string."""
        if not self._words:
            return text
        if self._pattern is None:
            forms = {form for word in self._words for form in _forms(word)}
            # The longest first: a secret may begin like another one.
            self._pattern = re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True))))
        return self._pattern.sub(HIDDEN, text)

    def redact_error(self, error: PipelineEngineError) -> None:
        """Take the secrets out of an error that is on its way to clients."""
        error.message = self.redact(error.message)
        error.args = (error.message,)
        error.details = self._redact_value(error.details)

    def _redact_value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.redact(value)
        if isinstance(value, dict):
            return {key: self._redact_value(part) for key, part in value.items()}
        return [self._redact_value(part) for part in value] if isinstance(value, list | tuple) else value


def _forms(word: str) -> set[str]:
    return {word, json.dumps(word)[1:-1], json.dumps(word, ensure_ascii=False)[1:-1], repr(word)[1:-1]}


def without_secrets(address: str) -> str:
    """The address as anybody may see it: with `***` for the values in its query that are secrets by their names."""
    base, _, query = address.partition("?")
    for name, value in _secret_parameters(query):
        query = query.replace(f"{name}={value}", f"{name}={HIDDEN}")
    return f"{base}?{query}" if query else base


def _secret_parameters(query: str) -> list[tuple[str, str]]:
    pairs = [(name, value) for name, _, value in (part.partition("=") for part in query.split("&"))]
    return [(name, value) for name, value in pairs if value and _SECRET_NAME.fullmatch(unquote(name))]
