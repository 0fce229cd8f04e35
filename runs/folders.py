"""Output folders of a run: whether they can be written, and removal of an earlier run's files."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator

CHECKPOINT = r"(index|data-\d{5}-of-\d{5})"  # suffixes of its files
EVENTS = re.compile(r"events\.out\.tfevents\..*")  # TensorBoard's


def problem_with(folder: str) -> str | None:
    """Return why a folder cannot be made or written, in words; None if it can. Nothing is left
    behind.

    A trial file is made in the folder or, where there is none yet, in the one above that it would
    be made in: permissions alone do not tell.
    """
    there = os.path.abspath(folder)
    try:
        while not _exists(there):
            there = os.path.dirname(there)
        if not os.path.isdir(there):
            return f"{there} is not a folder"
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x")
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        return f"{error.strerror} in {there}" if isinstance(error, OSError) else str(error)
    return None


def _exists(path: str) -> bool:
    """Whether there is something of that name, a broken link for one.

    Raises:
        OSError, ValueError: there can be nothing of that name.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def matching(folder: str, pattern: re.Pattern) -> Iterator[str]:
    """Yield the paths of regular files in a folder whose names match; nothing is looked for behind
    links.
    """
    if os.path.islink(folder) or not os.path.isdir(folder):
        return
    for entry in os.scandir(folder):
        if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            yield entry.path


def same_files(first: Iterable[str], second: Iterable[str]) -> Iterator[str]:
    """Yield the paths of `first` that are one file with a path of `second`, whatever links lead
    there.
    """
    others = {os.path.realpath(path) for path in second}
    return (path for path in first if os.path.realpath(path) in others)


def remove(files: Iterable[str], folders: Iterable[str] = ()) -> None:
    """Remove files, then those of the folders that are empty."""
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    for folder in folders:
        with contextlib.suppress(OSError):  # not there, or it holds something else
            os.rmdir(folder)
