"""The text, reasoning and tool calls of an answer, put together from its pieces."""

from __future__ import annotations

import json
from typing import Any

from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.jsontext import MAX_DEPTH
from pipeline_engine.providers.base import Chunk
from pipeline_engine.providers.framing import TextJoiner, clean_text, decode_json

_LENGTH_REASONS = frozenset({"length", "max_tokens", "model_length"})


class AnswerText:
    """Turns pieces of text and reasoning into chunks, and knows at the end whether there was more than white space."""

    def __init__(self) -> None:
        self._text = TextJoiner()
        self._reasoning = TextJoiner()
        self.has_text = False
        self.has_reasoning = False

    def text(self, piece: Any) -> list[Chunk]:
        """The chunks for a piece; anything but a text (null, a missing value) is no piece."""
        content = self._text.feed(piece) if isinstance(piece, str) else ""
        self.has_text = self.has_text or _says_something(content)
        return [Chunk(content)] if content else []

    def reasoning(self, piece: Any) -> list[Chunk]:
        content = self._reasoning.feed(piece) if isinstance(piece, str) else ""
        self.has_reasoning = self.has_reasoning or bool(content)
        return [Chunk(content, "reasoning")] if content else []

    def flush(self) -> list[Chunk]:
        """What was held back for a next piece that never came."""
        reasoning, text = self._reasoning.flush(), self._text.flush()
        self.has_text = self.has_text or _says_something(text)
        chunks = [Chunk(reasoning, "reasoning")] if reasoning else []
        return [*chunks, Chunk(text)] if text else chunks

    def check_not_empty(self, *, finish_reason: str | None, address: str) -> None:
        """Raise ProviderError unless there is text: an answer without any would look like a success downstream."""
        if self.has_text:
            return
        if finish_reason == "length":
            spent = "on reasoning " if self.has_reasoning else ""
            message = f"the token limit was spent {spent}before any answer of {address}: raise max_tokens"
            raise ProviderError(ErrorCode.OUTPUT_TRUNCATED, message)
        only = "only reasoning and no text" if self.has_reasoning else "no text"
        message = f"the answer of {address} holds {only} (finish reason: {finish_reason or 'none'})"
        raise ProviderError(ErrorCode.PROVIDER_EMPTY, message, retryable=True)


def _says_something(text: str) -> bool:
    return bool(text) and not text.isspace()


class ToolCalls:
    """Tool calls whose pieces may come without an index, with a wrong one, or interleaved."""

    def __init__(self) -> None:
        self._calls: list[_ToolCall] = []

    def __bool__(self) -> bool:
        return bool(self._calls)

    def feed(self, delta: Any) -> None:
        """One element of `tool_calls`, whole or a piece."""
        if not isinstance(delta, dict):
            return
        function = delta.get("function")
        function = function if isinstance(function, dict) else {}
        call_id, name = _word(delta.get("id")), _word(function.get("name"))
        call = self._find(call_id, delta.get("index"), name)
        call.id, call.name = call.id or call_id, call.name or name
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            call.pieces.append(arguments)
        elif arguments is not None:
            try:
                call.pieces.append(json.dumps(arguments))
            except RecursionError as exc:
                message = "the arguments of a tool call are nested too deeply"
                raise ProviderError(ErrorCode.PROVIDER_PROTOCOL, message) from exc

    def finish(self) -> list[dict[str, Any]]:
        """`{id, name, arguments}` each, in order of appearance.

        Arguments that are not JSON stay text, and so do those that are nested deeper than MAX_DEPTH: what is stored must
        be fit for every later walk over it.
        """
        return [call.finish(number) for number, call in enumerate(self._calls)]

    def _find(self, call_id: str, index: Any, name: str) -> _ToolCall:
        """The call that a piece belongs to, perhaps a new one.

        An id is what identifies a call, but for two kinds of servers: those that give several whole calls one id, and
        vLLM's older versions, which give each piece of a call another one. A piece without an id goes to the latest
        call with its index.
        """
        if known := [call for call in self._calls if call_id and call.id == call_id]:
            latest = ([call for call in known if call.index == index] or known)[-1]
            return self._add(index) if latest.is_another(index, name) else latest
        at_index = [call for call in self._calls if index is None or call.index == index]
        if not at_index or (call_id and (name or index is None)):
            return self._add(index)
        latest = at_index[-1]
        return self._add(index) if name and latest.name and latest.is_complete() else latest

    def _add(self, index: Any) -> _ToolCall:
        call = _ToolCall(index)
        self._calls.append(call)
        return call


class _ToolCall:
    def __init__(self, index: Any) -> None:
        self.id = ""
        self.index = index
        self.name = ""
        self.pieces: list[str] = []

    def is_another(self, index: Any, name: str) -> bool:
        """Whether a piece with the same id begins another call: one that has a name of its own, or an index."""
        if not name or not self.name:
            return False
        has_other_name = name != self.name
        has_other_index = None not in (index, self.index) and index != self.index
        if has_other_name and has_other_index:
            return True
        return (has_other_name or has_other_index) and self.is_complete()

    def is_complete(self) -> bool:
        """Whether the arguments are a whole JSON value already, so that a named piece begins another call."""
        try:
            decode_json("".join(self.pieces).encode(errors="replace"))
        except ValueError:
            return False
        return True

    def finish(self, number: int) -> dict[str, Any]:
        text = clean_text("".join(self.pieces))
        try:
            arguments = _cleaned(decode_json(text.encode()), MAX_DEPTH) if text.strip() else {}
        except ValueError:
            arguments = text
        return {
            "id": clean_text(self.id) or f"call_{number}",
            "name": clean_text(self.name),
            "arguments": arguments,
        }


def finish_reason_of(value: Any) -> str | None:
    """The finish reason, with the names that servers have for "the token limit" made one; None if there is none."""
    if not isinstance(value, str) or not value:
        return None
    return "length" if value in _LENGTH_REASONS else clean_text(value)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _cleaned(value: Any, depth: int) -> Any:
    """A JSON value whose strings can be stored: escapes in it may name half a surrogate pair.

    Raises ValueError if it is nested deeper than `depth` levels.
    """
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list | dict) and not depth:
        raise ValueError("nested too deeply")
    if isinstance(value, list):
        return [_cleaned(part, depth - 1) for part in value]
    if isinstance(value, dict):
        return {clean_text(key): _cleaned(part, depth - 1) for key, part in value.items()}
    return value
