from __future__ import annotations

import base64

import pytest

from pipeline_engine.providers.tool_output import MAX_TAIL_BYTES, PIECE_BYTES, BinaryOutput, Tail, ToolOutput

# Latin-1 bytes, a lone 0xFF 0xFE, a NUL, a cut character, colours and carriage returns.
ODD_BYTES = base64.b64decode("Y2Fm6SD//iAAbWlkACDigiAbWzMxbXJlZBtbMG0NNTAlDTEwMCUNCvCfpoAK")
ODD_TEXT = "caf\ufffd \ufffd\ufffd \u0000mid\u0000 \ufffd \u001b[31mred\u001b[0m\r50%\r100%\r\n\N{CRAB}\n"  # as it must come out


def test_whole_lines_are_flushed_and_a_partial_line_stays() -> None:
    output = ToolOutput(4096)
    output.append(b"one\ntwo\nthr")
    assert output.flush() == ["one\ntwo\n"]
    assert output.has_unsent
    output.append(b"ee\n")
    assert output.flush() == ["three\n"]
    assert not output.has_unsent
    assert output.finish() == []


def test_a_partial_line_is_flushed_when_there_is_nothing_else() -> None:
    output = ToolOutput(4096)
    output.append(b"50%\r")
    assert output.flush() == ["50%\r"]


def test_a_full_piece_ends_with_a_line() -> None:
    output = ToolOutput(1 << 20)
    line = b"x" * 999 + b"\n"
    output.append(line * 100)
    [piece] = output.full_pieces()
    assert piece == line.decode() * (PIECE_BYTES // 1000)
    assert output.finish() == [line.decode() * (100 - PIECE_BYTES // 1000)]


def test_a_line_longer_than_a_piece_is_cut_without_damaging_a_character() -> None:
    output = ToolOutput(1 << 20)
    text = "x" + "é" * PIECE_BYTES
    output.append(text.encode())
    pieces = output.full_pieces()
    assert len(pieces) == 2
    assert "".join([*pieces, *output.finish()]) == text


def test_odd_bytes_are_replaced_and_all_else_is_kept() -> None:
    output = ToolOutput(4096)
    output.append(ODD_BYTES)
    assert "".join(output.finish()) == ODD_TEXT
    assert output.warnings() == []


def test_a_character_cut_between_two_flushes_is_not_damaged() -> None:
    output = ToolOutput(4096)
    pieces = []
    for index in range(len(ODD_BYTES)):
        output.append(ODD_BYTES[index : index + 1])
        pieces += output.flush()
    assert "" not in pieces
    assert "".join([*pieces, *output.finish()]) == ODD_TEXT


def test_a_character_that_never_ends_is_replaced() -> None:
    output = ToolOutput(4096)
    output.append(b"\xf0\x9f")
    assert output.flush() == []
    assert output.finish() == ["\ufffd"]


@pytest.mark.parametrize("size", [767, 768, 769, 1023, 1024])
def test_output_of_at_most_max_bytes_is_whole(size: int) -> None:
    output = ToolOutput(1024)
    data = b"".join(b"%07d\n" % number for number in range(128))[:size]
    output.append(data)
    assert "".join([*output.flush(), *output.finish()]) == data.decode()
    assert output.warnings() == []


def test_of_more_than_max_bytes_head_and_tail_are_kept() -> None:
    output = ToolOutput(1024)
    data = b"".join(b"%07d\n" % number for number in range(1000))
    for start in range(0, len(data), 100):
        output.append(data[start : start + 100])
    head, marker, tail = output.finish()
    assert head == data[:768].decode()
    assert marker == "\n[… 6976 bytes left out …]\n"
    assert tail == data[-256:].decode()
    [warning] = output.warnings()
    message = "the tool wrote 8000 bytes; the first and the last ones are kept, 1024 in all"
    assert warning == {"code": "output_truncated", "message": message, "total_bytes": 8000, "kept_bytes": 1024}


def test_characters_at_the_cut_are_left_out_whole() -> None:
    output = ToolOutput(1024)
    output.append(b"x" + "\N{CRAB}".encode() * 1000 + b"y")
    head, marker, tail = output.finish()
    assert head == "x" + "\N{CRAB}" * 191
    assert tail == "\N{CRAB}" * 63 + "y"
    assert marker == f"\n[… {4 * (1000 - 191 - 63)} bytes left out …]\n"


def test_a_flood_is_held_in_little_memory_and_few_pieces() -> None:
    output = ToolOutput(1 << 20)
    count = 0
    for _ in range(1000):
        output.append(b"0123456789abcde\n" * 4096)
        count += len(output.full_pieces())
        assert len(output._unsent) < PIECE_BYTES
        assert len(output._tail._kept) <= 2 * MAX_TAIL_BYTES
    count += len(output.finish())
    assert count <= 18
    assert output.warnings()[0]["total_bytes"] == 65_536_000


def test_bytes_are_kept_as_they_are_and_give_no_pieces() -> None:
    output = BinaryOutput(4096)
    for index in range(len(ODD_BYTES)):
        output.append(ODD_BYTES[index : index + 1])
        assert not output.has_unsent
    assert [*output.full_pieces(), *output.flush(), *output.finish()] == []
    assert output.content == ODD_BYTES
    assert output.warnings() == []


def test_of_too_many_bytes_head_and_tail_are_kept_without_a_marker() -> None:
    output = BinaryOutput(1024)
    output.append(b"\xff" * 5000)
    output.append(b"\x80" * 256)  # no character begins here
    assert output.finish() == []
    assert output.content == b"\xff" * 768 + b"\x80" * 256
    [warning] = output.warnings()
    assert (warning["code"], warning["total_bytes"], warning["kept_bytes"]) == ("output_truncated", 5256, 1024)


def test_a_tail_keeps_the_last_bytes_and_counts_all() -> None:
    tail = Tail(4)
    tail.append(b"abc")
    assert (tail.is_cut, tail.content, tail.total) == (False, b"abc", 3)
    tail.append(b"d")
    assert (tail.is_cut, tail.content) == (False, b"abcd")
    for _ in range(10):
        tail.append(b"efg")
    assert (tail.is_cut, tail.text, tail.total) == (True, "gefg", 34)


def test_a_cut_tail_begins_with_a_whole_character() -> None:
    tail = Tail(6)
    tail.append("ab\N{CRAB}cd".encode())
    assert tail.text == "\N{CRAB}cd"
    tail.append(b"e")
    assert tail.text == "cde"
