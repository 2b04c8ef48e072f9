from __future__ import annotations

import pytest

from pipeline_engine.suggestions import MAX_LISTED, known_names, near_names


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("defualt-ollama", "did you mean 'default-ollama'? known: cloud, default-ollama"),
        ("CLOUD", "did you mean 'cloud'? known: cloud, default-ollama"),
        ("cl", "did you mean 'cloud'? known: cloud, default-ollama"),
        ("x", "known: cloud, default-ollama"),
    ],
)
def test_near_names_come_first_and_all_known_ones_are_listed(name: str, words: str) -> None:
    assert known_names(name, {"default-ollama", "cloud"}) == words


def test_nothing_known_is_said_and_a_long_list_is_cut() -> None:
    assert known_names("x", []) == "known: none"
    many = [f"n{number:03}" for number in range(MAX_LISTED + 5)]
    assert known_names("zzzz", many).endswith(f"n{MAX_LISTED - 1:03} and 5 more")
    assert len(near_names("n", many)) <= 3
