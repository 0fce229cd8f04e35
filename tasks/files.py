"""Writing small result files so that a reader never sees half of one."""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `path`: whole into a temporary file beside it, then renamed over it.

    Args:
        path: the file to make or replace. Its folder is made when missing.
        text: all of the content.

    Raises:
        OSError: the folder cannot be made or written, or the disk is full; what `path` held before is untouched.
    """
    path = os.fspath(path)
    folder = os.path.dirname(path) or "."
    try:
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=os.path.basename(path) + ".", suffix=".tmp", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes files that only the owner can read; give the result the usual mode instead.
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise type(error)(error.errno, f"cannot write {path}: {error.strerror}") from error


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int | None = 4) -> None:
    """Write `value` as JSON with a final newline, atomically (see `write_text`)."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def _umask() -> int:
    """Return the process umask (the only way to read it is to set it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
