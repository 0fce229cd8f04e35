"""Texts for a terminal or a log."""

from __future__ import annotations


def printable(text: object) -> str:
    """`str(text)` with everything that a terminal would act on shown escaped.

    Control characters (line feeds, terminal escapes), invisible ones such as marks of writing direction, and bytes of file
    names that are no text. Names come from files and from other programs: raw they could hide or forge what a terminal shows.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)
