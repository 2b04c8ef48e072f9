"""Which parameters a server refuses for a model, learnt from its errors, and the request bodies without them."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline_engine.providers.base import Target
from pipeline_engine.providers.failures import AnsweredError

MAX_REMEMBERED = 1000  # models at addresses

_UNSUPPORTED = frozenset({"unsupported_parameter", "unsupported_value", "unknown_parameter", "extra_forbidden"})
_RENAMED = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
# Ours to ask for, the server's to refuse: naming one of these is enough, since old servers send no code.
_OPTIONAL = ("response_format", "stream_options")
_ESSENTIAL = frozenset({"model", "messages", "input"})


@dataclass(slots=True)
class Adaptation:
    """The parameters that one call's server has refused, in order."""

    refused: list[str] = field(default_factory=list)

    def apply(self, body: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The body as the server takes it, and a warning for each change that alters what was asked for."""
        adapted = dict(body)
        warnings: list[dict[str, Any]] = []
        for name in self.refused:
            if name not in adapted:
                continue
            change = self._change(adapted, name)
            if name != "stream_options":
                message = f"the server does not take {name} for this model; {change}"
                warnings.append({"code": "parameter_not_supported", "message": message, "parameter": name})
        return adapted, warnings

    def _change(self, body: dict[str, Any], name: str) -> str:
        value = body.pop(name)
        other = _RENAMED.get(name)
        if other is not None and other not in self.refused[: self.refused.index(name)]:
            body[other] = value
            return f"it was sent as {other}"
        if name == "response_format" and isinstance(value, dict) and value.get("type") == "json_schema":
            body[name] = {"type": "json_object"}
            return "a JSON object was asked for instead of the schema"
        if name == "stream":
            body.pop("stream_options", None)
        return "it was left out"


class Adaptations:
    """Remembers for each address and model what was refused, so that only the first call pays for it."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], list[str]] = OrderedDict()

    def recall(self, target: Target) -> Adaptation:
        """What is known, to be used by one call."""
        return Adaptation(list(self._known.get((target.base_uri, target.model), ())))

    def learn(self, target: Target, adaptation: Adaptation, sent: Mapping[str, Any], error: AnsweredError) -> bool:
        """Whether the error names a parameter of the body that was sent without which the call can go on."""
        name = _refused_parameter(sent, error)
        if name is None:
            return False
        adaptation.refused.append(name)
        # A refusal that blames the messages (no "json" in them) says nothing about other calls.
        if error.info.param != "messages":
            key = (target.base_uri, target.model)
            self._known[key] = list(adaptation.refused)
            self._known.move_to_end(key)
            while len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)
        return True


def _refused_parameter(sent: Mapping[str, Any], error: AnsweredError) -> str | None:
    if error.details.get("status") not in (400, 422):
        return None
    info = error.info
    named = info.param.partition(".")[0]
    unsupported = info.code.lower() in _UNSUPPORTED or info.type.lower() in _UNSUPPORTED
    other = _RENAMED.get(named)
    if other is not None and _mentions(info.message, other):
        unsupported = True
    if unsupported and named in sent and named not in _ESSENTIAL:
        return named
    words = info.message or str(error.details.get("raw", ""))
    return next((name for name in _OPTIONAL if name in sent and (name == named or _mentions(words, name))), None)


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){name}(?!\w)", text) is not None
