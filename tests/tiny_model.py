"""A language model of half a megabyte that says nonsense, as a GGUF file: enough for llama.cpp to serve.

The format is described in ggml's docs/gguf.md, version 3.
"""

from __future__ import annotations

import random
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path

EMBEDDING, LAYERS, HEADS, FEED_FORWARD = 64, 2, 4, 128
CONTEXT = 4096
ALIGNMENT = 32  # bytes
WORDS = "▁the ▁a ▁cat ▁dog ▁sat ▁ran ▁on ▁mat ▁and ▁then ▁it ▁was ▁red ▁blue ▁big ▁small ▁house ▁lamp ▁sea ▁night"
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{number:02X}>" for number in range(256)]
TOKENS = [*SPECIAL, *BYTES, *WORDS.split(), *"▁abcdefghijklmnopqrstuvwxyz.,!?"]
UNLIKELY = len(SPECIAL) + len(BYTES)  # the first tokens, which would look odd in a text
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"

Tensor = tuple[tuple[int, ...], "array[float]"]

_UINT32, _INT32, _FLOAT32, _STRING, _ARRAY = 4, 5, 6, 8, 9


def write_tiny_model(path: Path) -> None:
    words = len(TOKENS) - UNLIKELY
    scores = [0.0] * UNLIKELY + [-float(number + 1) for number in range(words)]
    types = [2, 3, 3] + [6] * len(BYTES) + [1] * words  # unknown, control, byte, normal
    values = {
        "general.architecture": _text("llama"),
        "general.name": _text("tiny"),
        "llama.context_length": _uint32(CONTEXT),
        "llama.embedding_length": _uint32(EMBEDDING),
        "llama.block_count": _uint32(LAYERS),
        "llama.feed_forward_length": _uint32(FEED_FORWARD),
        "llama.attention.head_count": _uint32(HEADS),
        "llama.attention.head_count_kv": _uint32(HEADS),
        "llama.attention.layer_norm_rms_epsilon": struct.pack("<If", _FLOAT32, 1e-5),
        "llama.rope.dimension_count": _uint32(EMBEDDING // HEADS),
        "llama.vocab_size": _uint32(len(TOKENS)),
        "tokenizer.ggml.model": _text("llama"),
        "tokenizer.ggml.tokens": _list(_STRING, [_string(token) for token in TOKENS]),
        "tokenizer.ggml.scores": _list(_FLOAT32, [struct.pack("<f", score) for score in scores]),
        "tokenizer.ggml.token_type": _list(_INT32, [struct.pack("<i", number) for number in types]),
        "tokenizer.ggml.bos_token_id": _uint32(1),
        "tokenizer.ggml.eos_token_id": _uint32(2),
        "tokenizer.ggml.unknown_token_id": _uint32(0),
        "tokenizer.chat_template": _text(TEMPLATE),
    }
    tensors = _tensors()
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(values))]
    head += [_string(name) + value for name, value in values.items()]
    offset = 0
    for name, (shape, numbers) in tensors.items():
        dimensions = b"".join(struct.pack("<Q", size) for size in reversed(shape))
        head.append(_string(name) + struct.pack("<I", len(shape)) + dimensions + struct.pack("<IQ", 0, offset))
        offset += _padded(4 * len(numbers))
    meta = b"".join(head)
    with path.open("wb") as file:
        file.write(meta.ljust(_padded(len(meta)), b"\0"))
        for _, numbers in tensors.values():
            data = numbers.tobytes()
            file.write(data.ljust(_padded(len(data)), b"\0"))


def _tensors() -> dict[str, Tensor]:
    source = random.Random(0)

    def noise(rows: int, columns: int, scale: float = 0.2) -> Tensor:
        return (rows, columns), array("f", (source.gauss(0, scale) for _ in range(rows * columns)))

    ones: Tensor = (EMBEDDING,), array("f", [1.0] * EMBEDDING)
    head_shape, head = noise(len(TOKENS), EMBEDDING, 0.3)
    head[: UNLIKELY * EMBEDDING] = array("f", [0.0] * (UNLIKELY * EMBEDDING))
    tensors = {
        "token_embd.weight": noise(len(TOKENS), EMBEDDING, 1.0),
        "output_norm.weight": ones,
        "output.weight": (head_shape, head),
    }
    for layer in range(LAYERS):
        block: dict[str, Tensor] = {"attn_norm": ones, "ffn_norm": ones}
        block |= {name: noise(EMBEDDING, EMBEDDING) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
        block |= {name: noise(FEED_FORWARD, EMBEDDING) for name in ("ffn_gate", "ffn_up")}
        block |= {"ffn_down": noise(EMBEDDING, FEED_FORWARD)}
        tensors |= {f"blk.{layer}.{name}.weight": tensor for name, tensor in block.items()}
    return tensors


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _text(text: str) -> bytes:
    return struct.pack("<I", _STRING) + _string(text)


def _uint32(number: int) -> bytes:
    return struct.pack("<II", _UINT32, number)


def _list(type_: int, items: Sequence[bytes]) -> bytes:
    return struct.pack("<IIQ", _ARRAY, type_, len(items)) + b"".join(items)
