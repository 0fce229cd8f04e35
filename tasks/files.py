"""Writing small result files so that a reader never sees half of one."""

from __future__ import annotations

import os
from typing import Any

from fileio import atomic


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `path`, atomically (see `fileio.atomic`).

    Args:
        path: the file to make or replace. Its folder is made when missing.
        text: all of the content.

    Raises:
        OSError: the folder cannot be made or written, or the disk is full; what `path` held before is untouched.
    """
    atomic.write_text(path, text, make_folder=True)


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int | None = 4) -> None:
    """Write `value` as JSON with a final newline, atomically (see `write_text`)."""
    atomic.write_json(path, value, indent=indent, make_folder=True)
