from __future__ import annotations

import pytest

from pipeline_engine_sdk._lines import LineSplitter

TEXT = '{"a":"x\u2028y\u0085z\x0b\x0c\x1c\r"}\n\n{"b":"ü"}\nrest'.encode()
LINES = ['{"a":"x\u2028y\u0085z\x0b\x0c\x1c\r"}'.encode(), '{"b":"ü"}'.encode()]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_lines_end_at_newlines_alone_wherever_the_pieces_are_cut(size: int) -> None:
    splitter = LineSplitter()
    lines = [line for at in range(0, len(TEXT), size) for line in splitter.feed(TEXT[at : at + size])]
    assert lines == LINES
    assert splitter.feed(b"!\n") == [b"rest!"]
