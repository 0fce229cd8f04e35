"""Exceptions of reading and writing files."""

from __future__ import annotations

import errno
import os

from fileio.messages import printable


class WriteError(OSError):
    """A file could not be written; what was there before is as it was.

    Attributes:
      reason: why, without the name of the file.
    """

    reason = ""


class ContentError(ValueError):
    """A file, or a text, does not hold what it should; the message names it."""


def write_error(path: str | os.PathLike[str], error: OSError) -> WriteError:
    """A `WriteError` in one line, with the number of the system's error."""
    if isinstance(error, WriteError):
        return error
    full = (
        "; free some space or name another place"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        else ""
    )
    reason = printable(error.strerror or error)
    result = WriteError(f"cannot write {printable(os.fspath(path))}: {reason}{full}")
    result.errno, result.reason = error.errno, reason
    return result
