"""The chat messages of OpenAI's API: the request's body, and what an answer's events add up to."""

from __future__ import annotations

import base64
from typing import Any

from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.models import Usage
from pipeline_engine.providers.base import Chunk, Completion, Message, ProviderCall
from pipeline_engine.providers.framing import SseEvent, clean_text, decode_json
from pipeline_engine.providers.http import Answer
from pipeline_engine.providers.mime import sniff_mime
from pipeline_engine.providers.text_stream import AnswerText, ToolCalls, finish_reason_of
from pipeline_engine.providers.usage import usage_of

END_MARK = b"[DONE]"


def chat_body(call: ProviderCall) -> dict[str, Any]:
    """The body of a chat request; the profile's options may set whatever is not the call's own."""
    target = call.target
    body: dict[str, Any] = {}
    if call.json_schema is not None and not isinstance(call.json_schema, bool):
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": call.json_schema},
        }
    elif call.json_mode or call.json_schema is not None:
        body["response_format"] = {"type": "json_object"}
    if target.stream:
        body["stream_options"] = {"include_usage": True}
    body |= target.options
    body |= {"model": target.model, "messages": [_message(message) for message in call.messages]}
    body["stream"] = target.stream
    if call.max_tokens is not None:
        name = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
        body[name] = call.max_tokens
    return body


def _message(message: Message) -> dict[str, Any]:
    if not message.images:
        return {"role": message.role, "content": message.content}
    parts: list[dict[str, Any]] = [{"type": "text", "text": message.content}] if message.content else []
    for image in message.images:
        # The type comes from the bytes: a server checks it against them.
        mime = sniff_mime(image) or "application/octet-stream"
        url = f"data:{mime};base64,{base64.b64encode(image).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return {"role": message.role, "content": parts}


class ChatAnswer:
    """Reads the events, or the one JSON object, of an answer to a chat request."""

    def __init__(self, answer: Answer, *, address: str) -> None:
        self._answer = answer
        self._address = address
        self._text = AnswerText()
        self._tool_calls = ToolCalls()
        self._refusal = ""
        self._usage: Usage | None = None
        self._model: str | None = None
        self._is_document = False
        self.finish_reason: str | None = None
        #: Whether the end mark has come, after which nothing counts.
        self.ended = False
        #: Whether any event has come.
        self.began = False

    @property
    def is_whole(self) -> bool:
        """Either a finish reason or the end mark makes an answer whole; one JSON document is whole by itself."""
        return self.ended or self.finish_reason is not None or self._is_document

    @property
    def has_hidden(self) -> bool:
        """Whether anything of the answer has come that makes no chunks."""
        return bool(self._tool_calls or self._refusal)

    def feed_event(self, event: SseEvent) -> list[Chunk]:
        """The chunks that a server-sent event brings."""
        if self.ended:
            return []
        self.began = True
        data = event.data.strip()
        if data == END_MARK:
            self.ended = True
            return []
        try:
            value = decode_json(data)
        except ValueError:
            if event.event == "error":
                raise self._answer.error_inside({"error": data.decode(errors="replace")}, raw=data) from None
            if event.event != "message":
                return []
            raise self._answer.protocol_error("has an event that is not JSON", raw=data) from None
        if event.event == "error" and isinstance(value, dict) and not value.get("error"):
            value = {"error": value}
        return self._feed(value, data)

    def feed_document(self, value: dict[str, Any]) -> list[Chunk]:
        """The chunks of an answer that is one JSON object, which servers also send when a stream was asked for."""
        self.began = self._is_document = True
        if not isinstance(value.get("choices"), list):
            raise self._answer.protocol_error("has no choices")
        return self._feed(value, b"")

    def finish(self, warnings: list[dict[str, Any]]) -> list[Chunk | Completion]:
        """What remains to be said at the end. Raises ProviderError if the answer is of no use."""
        if not self.is_whole:
            raise self._answer.truncated()
        if self._refusal:
            message = f"the model refused to answer: {clean_text(self._refusal)[:500]}"
            raise ProviderError(ErrorCode.CONTENT_FILTERED, message)
        if self.finish_reason == "content_filter":
            raise ProviderError(ErrorCode.CONTENT_FILTERED, f"the content filter of {self._address} cut the answer")
        rest = self._text.flush()
        tool_calls = self._tool_calls.finish()
        if not tool_calls:
            self._text.check_not_empty(finish_reason=self.finish_reason, address=self._address)
        completion = Completion(
            finish_reason=self.finish_reason,
            usage=self._usage,
            model=self._model,
            tool_calls=tool_calls,
            warnings=warnings,
        )
        return [*rest, completion]

    def _feed(self, value: Any, raw: bytes) -> list[Chunk]:
        if not isinstance(value, dict):
            return []
        if value.get("error"):
            raise self._answer.error_inside(value, raw=raw)
        if (usage := value.get("usage")) is not None:
            self._usage = usage_of(usage, earlier=self._usage)
        if isinstance(model := value.get("model"), str) and model and model != self._model:
            self._model = clean_text(model)
        chunks: list[Chunk] = []
        choices = value.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            # With `n` in the options there are more; one answer is one item.
            if isinstance(choice, dict) and choice.get("index") in (0, None):
                chunks += self._feed_choice(choice, raw)
        return chunks

    def _feed_choice(self, choice: dict[str, Any], raw: bytes) -> list[Chunk]:
        delta = choice.get("delta") or choice.get("message")
        chunks: list[Chunk] = []
        if isinstance(delta, dict):
            # Servers that know both names may send the same reasoning under each.
            if reasoning := delta.get("reasoning_content") or delta.get("reasoning"):
                chunks += self._text.reasoning(reasoning)
            if content := delta.get("content"):
                chunks += self._text.text(_plain(content))
            if isinstance(refusal := delta.get("refusal"), str):
                self._refusal += refusal
            tool_calls = delta.get("tool_calls")
            for tool_call in tool_calls if isinstance(tool_calls, list) else ():
                self._tool_calls.feed(tool_call)
        if reason := choice.get("finish_reason"):
            self.finish_reason = finish_reason_of(reason) or self.finish_reason
        if self.finish_reason == "error":
            raise self._answer.error_inside({"error": "the provider ended the answer with an error"}, raw=raw)
        return chunks


def _plain(content: Any) -> Any:
    """The text of a content that is a list of parts, as some servers send it."""
    if not isinstance(content, list):
        return content
    return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
