"""Texts of errors, ours made of those of others."""

from __future__ import annotations

from fileio.messages import printable


def one_line(error: object, limit: int | None = None) -> str:
    """What an error says, in one line of at most `limit` characters that a terminal shows as they are."""
    return printable(" ".join(str(error).split()))[:limit]


def shown(value: object, limit: int = 200) -> str:
    """`repr(value)` in one line of at most `limit` characters, for messages about what a file or a user gave."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested without end; integers of thousands of digits
        text = f"a {type(value).__name__}"
    return printable(text if len(text) <= limit else text[: limit - 4] + " ...")
