"""Formatting of error messages, including those of other libraries."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fileio.messages import printable


def one_line(error: object, limit: int | None = None) -> str:
    """Message of an error in one line of at most `limit` printable characters."""
    return printable(" ".join(str(error).split()))[:limit]


def shown(value: object, limit: int = 200) -> str:
    """`repr(value)` in one line of at most `limit` characters, for values from files or users."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested without end; integers of thousands of digits
        text = f"a {type(value).__name__}"
    return printable(text if len(text) <= limit else text[: limit - 4] + " ...")


def some_of(names: Iterable[str], limit: int = 4) -> str:
    """The first names, with dots where there are more; empty where there is none."""
    listed = list(names)
    return ", ".join(listed[:limit]) + (", ..." if len(listed) > limit else "")


def reason_of(error: Exception | None) -> str:
    """Type and message of an error that the user's code raised, in one line.

    Keras wraps errors of a layer into many lines, with the error itself in bold below a heading;
    TensorFlow puts a traceback before errors in functions of the user, and the error with its type
    on the last line.
    """
    lines = [re.sub(r"\x1b\[\d+m", "", line).strip() for line in str(error).splitlines()]
    lines = [
        line for line in lines if line and not line.startswith("Exception encountered when calling")
    ]
    if lines and lines[0] == "in user code:":
        kinds = [line for line in lines if re.match(r"\w*(Error|Exception)\b.*:", line)]
        return printable(kinds[-1] if kinds else lines[-1])
    return printable(f"{type(error).__name__}: {lines[0] if lines else ''}")
