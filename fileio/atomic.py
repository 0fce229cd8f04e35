"""Atomic writes of one file: a reader, a kill or a full disk never meets half of one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import shutil
import stat
import tempfile
from collections.abc import Iterator
from typing import Any

from fileio.errors import write_error
from fileio.staging import staging


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, make_folder: bool = False) -> Iterator[pathlib.Path]:
    """A temporary path of the same name; what is written there replaces `path` when the block ends
    without an error.

    A symbolic link stays and its target is replaced; permissions of an existing file are kept.
    Nothing ever takes the place of a device or a named pipe: those are written to.

    Args:
      path: the file to make or replace.
      make_folder: make the folder of `path` where it is missing.

    Raises:
      WriteError: it cannot be written; what was there before is as it was.
    """
    try:
        target, is_stream = _destination(path)
        if make_folder:
            target.parent.mkdir(parents=True, exist_ok=True)
        with staging(tempfile.gettempdir() if is_stream else target.parent) as folder:
            temporary = folder / (target.name if not is_stream else "stream")
            yield temporary
            if is_stream:
                _copy_into(temporary, target)
            else:
                _replace(target, temporary)
    except OSError as error:
        raise write_error(path, error) from error


def put_in_place(temporary: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Replace a file by one that was prepared in a staging folder beside it, as `replacing` does.

    Raises:
      WriteError: it cannot be written; what was there before is as it was.
    """
    try:
        target, is_stream = _destination(path)
        if is_stream:
            _copy_into(pathlib.Path(temporary), target)
        else:
            _replace(target, pathlib.Path(temporary))
    except OSError as error:
        raise write_error(path, error) from error


def write_bytes(
    path: str | os.PathLike[str], data: bytes | memoryview, *, make_folder: bool = False
) -> None:
    """Write a file atomically, see `replacing`.

    Raises:
      WriteError: it cannot be written; what was there before is as it was.
    """
    with replacing(path, make_folder=make_folder) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str, *, make_folder: bool = False) -> None:
    """Write a text as UTF-8 atomically, see `replacing`.

    Raises:
      UnicodeEncodeError: it is no text.
      WriteError: it cannot be written; what was there before is as it was.
    """
    write_bytes(path, text.encode(), make_folder=make_folder)


def write_json(
    path: str | os.PathLike[str],
    value: Any,
    *,
    indent: int | None = None,
    make_folder: bool = False,
) -> None:
    """Write a value as JSON with a final newline atomically, see `replacing`.

    Raises:
      TypeError: JSON has no such value.
      WriteError: it cannot be written; what was there before is as it was.
    """
    write_text(path, json.dumps(value, indent=indent) + "\n", make_folder=make_folder)


def sync(path: str | os.PathLike[str]) -> None:
    """Force a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
        ):  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _destination(path: str | os.PathLike[str]) -> tuple[pathlib.Path, bool]:
    """The file that `path` leads to, and whether it is a stream: a device or named pipe, or a name
    of an open file.

    Raises:
      OSError: nothing can be written there.
    """
    path = os.fspath(path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if not os.path.basename(path):
            raise
        return pathlib.Path(os.path.realpath(path)), False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise OSError(errno.EINVAL, "it is no file")
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    # /dev/stdout leads to the file of a shell's redirection, which other programs write to as well.
    system = os.path.abspath(path).startswith(("/dev/", "/proc/"))
    if stat.S_ISREG(mode) and (not system or os.path.abspath(path).startswith("/dev/shm/")):
        return pathlib.Path(os.path.realpath(path)), False
    return pathlib.Path(path), True


def _copy_into(source: pathlib.Path, stream: pathlib.Path) -> None:
    """Write the content of a file to a device or pipe; a named pipe that nobody reads is an error,
    no endless wait.
    """
    descriptor = os.open(stream, os.O_WRONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    with open(source, "rb") as content, os.fdopen(descriptor, "wb") as output:
        shutil.copyfileobj(content, output)


def _replace(target: pathlib.Path, temporary: pathlib.Path) -> None:
    _take_over_permissions(target, temporary)
    sync(temporary)
    os.replace(temporary, target)
    sync(target.parent)


def _take_over_permissions(target: pathlib.Path, temporary: pathlib.Path) -> None:
    """Give a new file the permissions of the one that it replaces, and its owner where that is
    allowed.
    """
    try:
        old = target.stat()
    except FileNotFoundError:
        # Some libraries (safetensors) write for the owner alone. The folder has what the umask
        # leaves.
        os.chmod(temporary, stat.S_IMODE(temporary.parent.stat().st_mode) & 0o666)
        return
    os.chmod(temporary, stat.S_IMODE(old.st_mode))
    if (old.st_uid, old.st_gid) != (os.getuid(), os.getgid()):
        with contextlib.suppress(OSError):
            os.chown(temporary, old.st_uid, old.st_gid)
