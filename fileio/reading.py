"""Guarded reading: regular files of a bounded size, JSON of a bounded depth.

Whatever a damaged or hostile file makes a parser do ends in one `ContentError` that names the file.
"""

from __future__ import annotations

import json
import os
import stat
from typing import Any

from fileio.errors import ContentError
from fileio.messages import printable

MAX_DEPTH = 100  # nested lists and mappings
MAX_SIZE = 1 << 30  # bytes of a text file


def read_bytes(path: str | os.PathLike[str], limit: int = MAX_SIZE) -> bytes:
    """Content of a regular file.

    Args:
      path: of the file.
      limit: most bytes that such a file can have.

    Raises:
      FileNotFoundError: there is none.
      ContentError: it is a folder, a device or a pipe, or larger than `limit`.
      OSError: it cannot be read.
    """
    check_regular(path)
    # Without waiting: a pipe may have taken its place since.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise ContentError(
                f"{printable(path)}: has more than {limit:,} bytes, which no such file has"
            )
        return file.read()


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise FileNotFoundError if there is no file, ContentError if it is a folder, a device or a
    pipe.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {printable(path)}") from None
    except ValueError as error:  # a null character
        raise FileNotFoundError(f"there is no file {printable(path)}") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise ContentError(f"{printable(path)}: is {kind}, not a file")


def read_text(path: str | os.PathLike[str], limit: int = MAX_SIZE) -> str:
    """Content of a file of UTF-8 text; a byte order mark in front is left out.

    Raises:
      FileNotFoundError, ContentError, OSError: as `read_bytes`; ContentError also if it is no UTF-8
        text.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ContentError(
            f"{printable(path)}: is not UTF-8 text ({error.reason} at byte {error.start})"
        ) from error


def read_json(path: str | os.PathLike[str], *, unique_keys: bool = False) -> Any:
    """Value of a JSON file.

    Raises:
      FileNotFoundError, ContentError, OSError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path), os.fspath(path), unique_keys=unique_keys)


def parse_json(text: str, source: str, *, unique_keys: bool = False) -> Any:
    """Value of a JSON text.

    Args:
      text: JSON.
      source: what the text is called in messages, such as the path of its file.
      unique_keys: a key that occurs twice in an object is an error; otherwise the last one counts.

    Raises:
      ContentError: it is no JSON, or nested deeper than `MAX_DEPTH`.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique if unique_keys else None)
        _check_depth(value)
    except RecursionError:
        raise ContentError(
            f"{printable(source)}: not a JSON text that is read: nested deeper than {MAX_DEPTH}"
            " levels"
        ) from None
    except ValueError as error:
        raise ContentError(f"{printable(source)}: not a JSON text ({printable(error)})") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"key {next(name for name in names if names.count(name) > 1)!r} is there twice"
        )
    return result


def _check_depth(value: Any) -> None:
    """Raise RecursionError if lists and mappings are nested deeper than `MAX_DEPTH`."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            item
            for one in level
            if isinstance(one, (dict, list))
            for item in (one.values() if isinstance(one, dict) else one)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return
    raise RecursionError
