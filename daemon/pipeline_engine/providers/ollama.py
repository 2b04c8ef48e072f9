"""The Ollama provider: chat and embeddings of an Ollama server's own API."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any

from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.models import Usage
from pipeline_engine.providers.addresses import without_query
from pipeline_engine.providers.base import BEGUN, Chunk, Completion, Message, Operation, ProviderCall, Target
from pipeline_engine.providers.embeddings import checked_vectors
from pipeline_engine.providers.failures import AnsweredError
from pipeline_engine.providers.framing import JsonLinesDecoder, clean_text, decode_json
from pipeline_engine.providers.http import Answer, post_json
from pipeline_engine.providers.text_stream import AnswerText, ToolCalls, finish_reason_of
from pipeline_engine.providers.transport import HttpClient
from pipeline_engine.providers.usage import token_count

DEFAULT_CONTEXTS = (2048, 4096)  # tokens: num_ctx of Ollama's versions where nobody sets it

Batches = AsyncGenerator[list[Chunk | Completion]]


class OllamaProvider:
    """Runs CHAT and EMBED calls."""

    def __init__(self, *, client: HttpClient) -> None:
        self._client = client

    def stream(self, call: ProviderCall) -> AbstractAsyncContextManager[Batches]:
        return aclosing(self._embed(call) if call.operation is Operation.EMBED else self._chat(call))

    async def _chat(self, call: ProviderCall) -> Batches:
        target = call.target
        if not any(message.role == "user" and (message.content or message.images) for message in call.messages):
            # Ollama would only load the model.
            message = f"nothing was sent to {target.profile_id!r}: the prompt is empty"
            raise ProviderError(ErrorCode.PROVIDER_EMPTY, message)
        async with self._post(target, "/api/chat", _chat_body(call), "application/x-ndjson") as answer:
            chat = _ChatAnswer(answer, call)
            while not chat.ended and (lines := await answer.receive_lines()) is not None:
                batch: list[Chunk | Completion] = [*chat.feed_lines(lines)]
                yield batch or ([BEGUN] if chat.has_tool_calls else [])
            if not chat.ended:
                yield [*chat.feed_end()]
            if chat.ended:
                await answer.drain()
            yield chat.finish()

    async def _embed(self, call: ProviderCall) -> Batches:
        target = call.target
        body = {"model": target.model, "input": list(call.inputs), **_settings(target)}
        async with self._post(target, "/api/embed", body, "application/json") as answer:
            value = await answer.json()
            try:
                vectors = checked_vectors(value.get("embeddings"), len(call.inputs))
            except ValueError as exc:
                raise answer.protocol_error(str(exc)) from exc
        yield [Completion(embeddings=vectors, usage=_usage(value), model=_model(value))]

    @asynccontextmanager
    async def _post(self, target: Target, path: str, body: dict[str, Any], accept: str) -> AsyncIterator[Answer]:
        try:
            async with post_json(self._client, target, path, body, accept=accept) as answer:
                yield answer
        except AnsweredError as exc:
            if exc.details.get("status") != 404:
                raise
            raise _not_found(target, path, exc) from exc


class _ChatAnswer:
    """Reads the objects of an answer to a chat request: pieces, and one that is `done`."""

    def __init__(self, answer: Answer, call: ProviderCall) -> None:
        self._answer = answer
        self._call = call
        self._address = without_query(call.target.base_uri)
        self._text = AnswerText()
        self._tool_calls = ToolCalls()
        self._decoder = JsonLinesDecoder()
        self._last: dict[str, Any] = {}
        self._objects = 0
        self.began = False
        self.ended = False

    @property
    def has_tool_calls(self) -> bool:
        return bool(self._tool_calls)

    def feed_lines(self, lines: Sequence[bytes]) -> list[Chunk]:
        """The chunks that these lines bring; what follows the end counts nothing."""
        chunks: list[Chunk] = []
        for number, line in enumerate(lines):
            try:
                text = self._decoder.feed(line)
            except ValueError as exc:
                raw = b"\n".join(lines[number:])
                raise self._answer.protocol_error("has a line that is not JSON", raw=raw) from exc
            if text is not None:
                chunks += self._feed(text.value, raw=text.raw)
                if self.ended:
                    break
        return chunks

    def feed_end(self) -> list[Chunk]:
        """The chunks of what remains at the end of the body: a value with line ends in its strings, or half of one."""
        rest = self._decoder.rest()
        if not rest:
            return []
        try:
            value = decode_json(rest)
        except ValueError as exc:
            if self.began:
                return []
            raise self._answer.protocol_error("is not JSON", raw=rest) from exc
        return self._feed(value, raw=rest)

    def _feed(self, value: Any, *, raw: bytes) -> list[Chunk]:
        if not isinstance(value, dict):
            raise self._answer.protocol_error("has a line that is not a JSON object", raw=raw)
        if value.get("error"):
            raise self._answer.error_inside(value, raw=raw)
        self.began = True
        self._objects += 1
        self.ended = value.get("done") is True
        self._last = value
        message = value.get("message")
        if not isinstance(message, dict):
            return []
        tool_calls = message.get("tool_calls")
        for number, tool_call in enumerate(tool_calls if isinstance(tool_calls, list) else ()):
            # Always whole here: an index of its own keeps each apart.
            if isinstance(tool_call, dict):
                self._tool_calls.feed({"index": (self._objects, number), **tool_call})
        return [*self._text.reasoning(message.get("thinking")), *self._text.text(message.get("content"))]

    def finish(self) -> list[Chunk | Completion]:
        if not self.ended:
            if not self.began:
                message = f"the answer of {self._address} is empty"
                raise ProviderError(ErrorCode.PROVIDER_EMPTY, message, retryable=True)
            raise self._answer.truncated()
        reason = finish_reason_of(self._last.get("done_reason")) or "stop"
        if reason in ("load", "unload"):
            message = f"{self._address} only {reason}ed the model: it received no prompt"
            raise ProviderError(ErrorCode.PROVIDER_EMPTY, message)
        rest = self._text.flush()
        tool_calls = self._tool_calls.finish()
        if not tool_calls:
            self._text.check_not_empty(finish_reason=reason, address=self._address)
        completion = Completion(
            finish_reason=reason,
            usage=_usage(self._last),
            model=_model(self._last),
            tool_calls=tool_calls,
            warnings=_prompt_warnings(self._call, token_count(self._last.get("prompt_eval_count"))),
        )
        return [*rest, completion]


def _prompt_warnings(call: ProviderCall, tokens: int | None) -> list[dict[str, Any]]:
    """A warning if the prompt fills the whole context: Ollama cuts one that is longer, and says nothing.

    Without `num_ctx` the server's own default counts, and is not told; a prompt of exactly such a size, with far more
    characters than that, was cut. (A smaller count tells nothing: what the server still has in its cache is not counted.)
    """
    if tokens is None:
        return []
    num_ctx = call.target.options.get("num_ctx")
    if isinstance(num_ctx, int):
        cut = tokens >= num_ctx - 1
    else:
        cut = tokens in DEFAULT_CONTEXTS and sum(len(message.content) for message in call.messages) > 2 * tokens
    if not cut:
        return []
    message = f"the prompt fills the context of {tokens} tokens, so it was cut; a larger options.num_ctx keeps it whole"
    return [{"code": "prompt_truncated", "message": message, "prompt_tokens": tokens}]


def _chat_body(call: ProviderCall) -> dict[str, Any]:
    target = call.target
    body: dict[str, Any] = {
        "model": target.model,
        "messages": [_message(message) for message in call.messages],
        "stream": target.stream,
        **_settings(target),
    }
    if call.max_tokens is not None:
        body["options"] = {**body.get("options", {}), "num_predict": call.max_tokens}
    if call.json_schema is not None and not isinstance(call.json_schema, bool):
        body["format"] = call.json_schema
    elif call.json_mode or call.json_schema is not None:
        body["format"] = "json"
    return body


def _settings(target: Target) -> dict[str, Any]:
    options = dict(target.options)
    settings: dict[str, Any] = {}
    if "think" in options:
        # The one setting of a model's behaviour that Ollama takes beside its options, not in them.
        settings["think"] = options.pop("think")
    if options:
        settings["options"] = options
    if target.keep_alive is not None:
        settings["keep_alive"] = target.keep_alive
    return settings


def _message(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.images:
        # Bare base64: Ollama refuses data URIs.
        plain["images"] = [base64.b64encode(image).decode() for image in message.images]
    return plain


def _usage(value: dict[str, Any]) -> Usage | None:
    prompt, completion = token_count(value.get("prompt_eval_count")), token_count(value.get("eval_count"))
    if prompt is None and completion is None:
        return None
    return Usage(prompt_tokens=prompt or 0, completion_tokens=completion or 0)


def _model(value: dict[str, Any]) -> str | None:
    model = value.get("model")
    return clean_text(model) if isinstance(model, str) and model else None


def _not_found(target: Target, path: str, error: AnsweredError) -> ProviderError:
    """A 404 in Ollama's own form means the model; any other that nobody there knows the path."""
    address = without_query(target.base_uri)
    if error.info.known_format and not error.info.type and error.info.status is None:
        message = f"{address} has no model {target.model!r}"
        return ProviderError(ErrorCode.MODEL_NOT_FOUND, message, details=error.details)
    message = f"{address} does not know {path}: is it the address of an Ollama server?"
    return ProviderError(ErrorCode.PROVIDER_ERROR, message, details=error.details)
