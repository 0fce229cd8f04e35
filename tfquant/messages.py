"""Texts of errors, ours made of those of others."""

from __future__ import annotations


def one_line(error: Exception, limit: int | None = None) -> str:
    """What an error says, in one line of at most `limit` characters."""
    return " ".join(str(error).split())[:limit]
