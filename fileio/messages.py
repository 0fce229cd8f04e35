"""Texts for a terminal or a log."""

from __future__ import annotations


def printable(text: object, limit: int | None = None) -> str:
    """`str(text)` in one line, with everything that a terminal would act on shown escaped; cut in
    the middle beyond `limit`.

    Control characters (line feeds, terminal escapes), invisible ones such as marks of writing
    direction, and bytes of file names that are no text. Names come from files and from other
    programs: raw they could hide or forge what a terminal shows.
    """
    text = str(text)
    if limit is not None and len(text) > limit:
        text = f"{text[: limit // 2]} ... {text[-(limit // 2) :]}"
    return (
        text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)
    )


def printable_lines(text: str) -> str:
    """Text of several lines with everything that a terminal would act on shown escaped, but line
    feeds and tabs.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
