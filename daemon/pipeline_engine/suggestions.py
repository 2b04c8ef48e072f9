"""What a message says of a name that is not known: the names near it, and those that are."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

MAX_LISTED = 30  # of the known names; more would hide the message


def known_names(name: str, known: Iterable[str]) -> str:
    """`did you mean 'a'? known: a, b`; the question only where a known name is near."""
    names = sorted(known)
    listed = ", ".join(names[:MAX_LISTED]) or "none"
    if len(names) > MAX_LISTED:
        listed += f" and {len(names) - MAX_LISTED} more"
    near = near_names(name, names)
    question = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{question}known: {listed}"


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """Up to three known names that are written much like this one, or begin with it; the nearest first."""
    names = sorted(known)
    near = get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    begun = [one for one in names if len(name) > 1 and one.startswith(name.lower()) and one not in near]
    return [*near, *begun][:3]
