"""Reading texts that hold one record after another: lines, JSON lines, CSV, logfmt."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import Any

from pipeline_engine.errors import ErrorCode, StepError
from pipeline_engine.jsontext import JsonTextError, loads_strict

MAX_CSV_FIELD = 2**31 - 1  # characters

_BOM = "\N{BYTE ORDER MARK}"
_PAIR = re.compile(r"""\s*([^\s="]+)(?:(=)(?:"((?:[^"\\]|\\.)*)"|([^\s"]\S*))?)?(?=\s|$)""")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r"}


def text_lines(text: str) -> Iterator[str]:
    """The lines of a text, without their newlines. Only a newline ends a line; after the last one there is none."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    if start < len(text):
        yield text[start:]


def jsonl_values(text: str) -> Iterator[tuple[str, Any]]:
    """Each line that is not blank, without its line end, and the JSON value in it. Raises StepError with the line."""
    for number, line in enumerate(text_lines(text.removeprefix(_BOM)), 1):
        if not line or line.isspace():
            continue
        try:
            value = loads_strict(line, first_line=number)
        except JsonTextError as exc:
            raise StepError(ErrorCode.OUTPUT_INVALID, f"not JSON lines: {exc}") from exc
        yield line.removesuffix("\r"), value


def csv_rows(text: str) -> Iterator[dict[str, str]]:
    """Each row as an object of texts, named by the header row; blank lines are passed over.

    Commas separate, double quotes enclose (RFC 4180). A row with more or fewer fields than the header, or a header
    that names a column twice, is a StepError with the line.
    """
    csv.field_size_limit(MAX_CSV_FIELD)  # the module's one setting; its default of 128 KiB is less than some documents
    reader = csv.reader(_kept_lines(text.removeprefix(_BOM)), strict=True)
    header: list[str] | None = None
    line = 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            raise StepError(ErrorCode.OUTPUT_INVALID, f"line {line} is not CSV: {exc}") from exc
        if not row:
            pass
        elif header is None:
            header = row
            if len(set(row)) < len(row):
                raise StepError(ErrorCode.OUTPUT_INVALID, f"line {line}: the header of the CSV names a column twice")
        elif len(row) != len(header):
            message = f"line {line} of the CSV has {len(row)} fields, the header has {len(header)}"
            raise StepError(ErrorCode.OUTPUT_INVALID, message)
        else:
            yield dict(zip(header, row, strict=True))
        line = reader.line_num + 1


def _kept_lines(text: str) -> Iterator[str]:
    """The lines with their newlines, which can be part of a quoted field."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start : end + 1]
        start = end + 1
    if start < len(text):
        yield text[start:]


def logfmt_record(line: str, number: int = 1) -> dict[str, str]:
    r"""The pairs of a logfmt line, all values texts: `a=1 b="two words" c=` gives {"a": "1", "b": "two words", "c": ""}.

    A key alone means "true", as its flag is set; a key that comes twice keeps its last value. In quotes, \n, \t, \r
    and \uXXXX are escapes, and a backslash before anything else is dropped. Raises StepError with the line's number.
    """
    record: dict[str, str] = {}
    position = 0
    end = len(line.rstrip())
    while position < end:
        match = _PAIR.match(line, position)
        if match is None:
            shown = line[position : position + 40].strip()
            raise StepError(ErrorCode.OUTPUT_INVALID, f"line {number} is not logfmt, at: {shown}")
        key, equals, quoted, plain = match.groups()
        if quoted is not None:
            record[key] = _ESCAPE.sub(_unescaped, quoted)
        else:
            record[key] = (plain or "") if equals else "true"
        position = match.end()
    return record


def _unescaped(match: re.Match[str]) -> str:
    code = match.group(1)
    if len(code) == 5:
        character = chr(int(code[1:], 16))
        return "\N{REPLACEMENT CHARACTER}" if "\ud800" <= character <= "\udfff" else character
    return _ESCAPED.get(code, code)
