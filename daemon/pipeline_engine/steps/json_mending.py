"""JSON as models write it: mended where it is known what was meant.

Only what models are known to get wrong is mended: trailing commas, single quotes, Python's True, False and None, raw
line breaks inside texts. The work is linear in the length of the text.
"""

from __future__ import annotations

import re
from typing import Any

from pipeline_engine.jsontext import JsonTextError, loads_strict

_MENDED = re.compile(
    r"""(?P<double>"(?:[^"\\]|\\.)*+")|(?P<single>'(?:[^'\\]|\\.)*+')|(?P<comma>,(?=\s*+[}\]]))"""
    r"""|\b(?P<literal>True|False|None)\b|(?P<stray>["'\\])""",
    re.DOTALL,
)
_CONTROL = re.compile(r"[\x00-\x1f]")
_SINGLE_INNER = re.compile(r"""\\'|"|\\.""", re.DOTALL)
_LITERALS = {"True": "true", "False": "false", "None": "null"}


def loads_mended(text: str) -> Any:
    """The value of the text, an object or an array if it has to be mended. Raises JsonTextError."""
    try:
        return loads_strict(text)
    except JsonTextError:
        if text[:1] not in ("{", "["):
            raise
        return loads_strict(_MENDED.sub(_mended, text))


def _mended(match: re.Match[str]) -> str:
    token = match.group()
    match match.lastgroup:
        case "double":
            return _CONTROL.sub(_escaped, token)
        case "single":
            return '"' + _CONTROL.sub(_escaped, _SINGLE_INNER.sub(_requoted, token[1:-1])) + '"'
        case "comma":
            return ""
        case "stray":
            # Looking on would try a text at each of the quotes that follow, and each time to the end.
            raise JsonTextError("a quote or a backslash stands outside of its texts, or a text is never closed")
        case _:
            return _LITERALS[token]


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match.group()):04x}"


def _requoted(match: re.Match[str]) -> str:
    return {"\\'": "'", '"': '\\"'}.get(match.group(), match.group())
