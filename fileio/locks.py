"""The lock of a run on its output folder, so that two runs do not write to one folder unnoticed."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import platform
import sys
from collections.abc import Iterator

import filelock

from fileio.messages import printable

NAME = ".tfquant-lock"
# What network file systems without locks answer.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class FolderInUseError(OSError):
    """Another run is writing to a folder; the message names it."""


@contextlib.contextmanager
def folder_in_use(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a folder for this process while the block runs; the system lets go of it when the
    process dies.

    A process may enter it several times. Where the file system has no locks, the folder is not
    guarded. Where the block ends with an error and has written nothing, a folder that was made for
    it goes again.

    Args:
      folder: made if there is none.

    Raises:
      FolderInUseError: another process holds it.
      OSError: it cannot be written.
    """
    folder = pathlib.Path(folder)
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / NAME
    lock = filelock.FileLock(
        path, timeout=0, is_singleton=True, thread_local=False, fallback_to_soft=False
    )
    try:
        lock.acquire()
    except filelock.Timeout:
        raise FolderInUseError(
            f"{printable(folder)} is in use by another run ({_holder(path)}): wait until it has"
            " ended, or name another folder"
        ) from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        yield
        return
    try:
        if lock.lock_counter == 1:
            _note(path)
        yield
    except BaseException:
        if missing and lock.lock_counter == 1 and os.listdir(folder) == [NAME]:
            _remove(path, missing)
        raise
    finally:
        lock.release()


def _remove(path: pathlib.Path, folders: list[pathlib.Path]) -> None:
    """Remove the lock file and the folders above it, the innermost first; while it is held, so that
    no other run has it.
    """
    with contextlib.suppress(OSError):
        path.unlink()
        for folder in folders:
            folder.rmdir()


def _note(path: pathlib.Path) -> None:
    """Write into the lock file who holds it.

    Not atomically: another inode would be another lock.
    """
    with contextlib.suppress(OSError):
        path.write_text(
            f"process {os.getpid()} on {platform.node()}: {os.path.basename(sys.argv[0])}\n"
        )


def _holder(path: pathlib.Path) -> str:
    try:
        return printable(path.read_text(errors="replace").strip()[:200]) or "process unknown"
    except OSError:
        return "process unknown"
