"""How records of the log look."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from pipeline_engine.config import LogFormat, LogLevel
from pipeline_engine.logs import log_to_terminal, set_log_level, set_up_logging

log = logging.getLogger("some.module")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def written(log_format: LogFormat, level: LogLevel = LogLevel.INFO) -> io.StringIO:
    stream = io.StringIO()
    set_up_logging(level, log_format, stream=stream)
    return stream


def fail() -> None:
    try:
        int("for a test")
    except ValueError:
        log.exception("it failed")


def test_console_lines_have_time_level_text_and_module() -> None:
    stream = written(LogFormat.CONSOLE)
    log.info("listening on %s", "http://x")
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z"
    assert re.fullmatch(rf"{stamp} \[info +\] listening on http://x +\[some\.module\]\n", stream.getvalue())


def test_json_lines_are_json_with_the_traceback_in_them() -> None:
    stream = written(LogFormat.JSON)
    log.warning("two\nlines")
    fail()
    first, second = (json.loads(line) for line in stream.getvalue().split("\n")[:-1])
    assert (first["event"], first["level"], first["logger"]) == ("two\nlines", "warning", "some.module")
    assert first["timestamp"].endswith("Z")
    assert second["exception"].endswith("ValueError: invalid literal for int() with base 10: 'for a test'")


def test_each_line_for_the_journal_has_its_priority() -> None:
    stream = written(LogFormat.JOURNAL, LogLevel.DEBUG)
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.critical("d")
    assert stream.getvalue() == "<7>some.module: a\n<6>some.module: b\n<4>some.module: c\n<2>some.module: d\n"
    stream.truncate(0)
    fail()
    assert all(line.startswith("<3>") for line in stream.getvalue().removesuffix("\n").lstrip("\0").split("\n"))


def test_the_level_can_change() -> None:
    stream = written(LogFormat.JOURNAL)
    log.debug("unseen")
    set_log_level(LogLevel.DEBUG)
    log.debug("seen")
    set_log_level(LogLevel.ERROR)
    log.warning("unseen")
    assert stream.getvalue() == "<7>some.module: seen\n"


def test_libraries_that_would_write_headers_are_quiet() -> None:
    stream = written(LogFormat.JOURNAL, LogLevel.DEBUG)
    logging.getLogger("httpcore.http11").debug("authorization: Bearer sk-secret")
    assert stream.getvalue() == ""


def test_setting_up_twice_writes_once() -> None:
    written(LogFormat.CONSOLE)
    stream = written(LogFormat.JOURNAL)
    log.info("once")
    assert stream.getvalue().count("once") == 1


def test_a_command_tells_of_warnings_and_worse_without_secrets() -> None:
    stream = io.StringIO()
    log_to_terminal(stream, redact=lambda text: text.replace("sk-secret", "***"))
    log.info("unseen")
    log.warning("bad key sk-secret")
    assert stream.getvalue() == "pipeline-engine: bad key ***\n"
