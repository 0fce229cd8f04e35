"""Files of a run.

Guarded reading, with what a file is called in messages, and writing of small results (see
`fileio`).
"""

from __future__ import annotations

import os
import stat
from typing import Any

from fileio import atomic, reading
from fileio.errors import ContentError
from fileio.messages import printable

_PIPES = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")


def read_text(
    path: str | os.PathLike[str],
    title: str = "",
    *,
    limit: int = reading.MAX_SIZE,
    hint: str = "",
    pipes: bool = False,
) -> str:
    """Return a regular file of UTF-8 text, without a byte order mark; line ends stay as they are.

    Args:
        path: the file.
        title: what the file is, for messages, such as "SQuAD file".
        limit: larger files are refused, bytes.
        hint: follows the message about a missing file.
        pipes: also take standard input and process substitution (`<(command)`), which are pipes
          below /dev.

    Raises:
        FileNotFoundError: no such file.
        ContentError: a folder, a device or a pipe; too large; not UTF-8. A ValueError.
        OSError: it cannot be read.
    """
    path = os.fspath(path)
    try:
        if pipes and _is_pipe(path):
            return _from_pipe(path, limit)
        return reading.read_text(path, limit)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{_named(path, title)} not found{hint}") from None
    except ContentError as error:
        raise ContentError(f"{title} {error}".lstrip()) from error


def read_json(
    path: str | os.PathLike[str], title: str = "", *, kind: type | None = dict, **how: Any
) -> Any:
    """Return the value of a JSON file.

    Args:
        path: the file.
        title: what the file is, for messages.
        kind: type that the value must have; None for any.
        **how: as for `read_text`.

    Raises:
        ContentError: not JSON, nested too deeply, of another type, or as for `read_text`.
        OSError: see `read_text`.
    """
    return parse_json(
        read_text(path, title, **how), f"{title} {os.fspath(path)}".lstrip(), kind=kind
    )


def parse_json(text: str, source: str, *, kind: type | None = dict) -> Any:
    """Return the value of a JSON text.

    Args:
        text: the JSON.
        source: where it is from, which begins every message.
        kind: type that the value must have; None for any.

    Raises:
        ContentError: not JSON, nested too deeply, or of another type.
    """
    value = reading.parse_json(text, source)
    if kind is not None and not isinstance(value, kind):
        raise ContentError(
            f"{printable(source)}: expected a JSON {_JSON_NAMES[kind]}, found"
            f" {_JSON_NAMES[type(value)]}"
        )
    return value


_JSON_NAMES = {
    dict: "object",
    list: "list",
    str: "string",
    int: "number",
    float: "number",
    bool: "truth value",
    type(None): "null",
}


def _named(path: str, title: str) -> str:
    return f"{title} {printable(path)}".lstrip()


def _is_pipe(path: str) -> bool:
    return path.startswith(_PIPES) and os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)


def _from_pipe(path: str, limit: int) -> str:
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ContentError(f"{printable(path)}: does not end within {limit:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ContentError(
            f"{printable(path)}: is not UTF-8 text ({error.reason} at byte {error.start})"
        ) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `path`, atomically (see `fileio.atomic`).

    Args:
        path: the file to make or replace. Its folder is made when missing.
        text: all of the content.

    Raises:
        OSError: the folder cannot be made or written, or the disk is full; what `path` held before
          is untouched.
    """
    atomic.write_text(path, text, make_folder=True)


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int | None = 4) -> None:
    """Write `value` as JSON with a final newline, atomically (see `write_text`)."""
    atomic.write_json(path, value, indent=indent, make_folder=True)
