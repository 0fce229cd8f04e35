"""Replacing several files of a folder together, so that a kill at any moment leaves all of the old
or all of the new.

Several files cannot be replaced in one step, so they are made to look as if they were:

1. everything is written and synced in a staging folder inside the target folder;
2. that folder is renamed to `.tfquant-commit`: the one atomic step that decides whether the write
has happened; 3. its entries are moved over the old ones and the folder is removed.

Killed before 2, the old files are untouched; killed after it, the next reader or writer that calls
`recover` finishes step 3. A lock on the folder keeps a reader from tidying up under a live writer.
What refers to other files (`.xml` of OpenVINO to its `.bin`) is taken away before them and put in
place behind them: a program that knows nothing of this finds the old pair, no file, or the new
pair, never a mixture.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from fileio import advisory_locks
from fileio.atomic import sync
from fileio.errors import WriteError
from fileio.messages import printable
from fileio.staging import leftovers, staging, tidy

COMMIT = ".tfquant-commit"
# TensorFlow's own name for the small file that says which checkpoint is the latest
STATE = "checkpoint"
# Seconds that one process waits for another that writes to the same folder.
PATIENCE = 600.0
# Files that refer to others of the same stem, without a checksum of them.
_UNCHECKED = (".xml", ".onnx")
_REFERRING = (".index", *_UNCHECKED)
_ATTEMPTS = 8
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2

T = TypeVar("T")


@contextlib.contextmanager
def replacing_together(folder: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A staging folder; its entries replace those of the same names in `folder` when the block ends
    without an error.

    Args:
      folder: must exist.

    Raises:
      OSError: it cannot be written, or another process has been writing to it for `PATIENCE`
        seconds. Nothing is replaced.
    """
    folder = pathlib.Path(folder)
    with locked(folder):
        _roll_forward(folder)
        with staging(folder) as own:
            yield own
            _sync_all(own)
            os.rename(own, folder / COMMIT)
            sync(folder)
        _roll_forward(folder)


def replace_folder(staged: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Put a folder in the place of another, or where there is none, such that one of the two is
    always there, and whole.

    Args:
      staged: the new folder, in a staging folder on the same file system; the old one is left in
        its place, or removed.
      target: where it belongs.

    Raises:
      OSError: it cannot be replaced.
    """
    staged, target = pathlib.Path(staged), pathlib.Path(target)
    recover(target.parent)
    _sync_all(staged)
    if not target.exists():
        os.rename(staged, target)
    elif not _exchanged(
        staged, target
    ):  # by way of `recover`, as two renames leave a moment without either
        with replacing_together(target.parent) as own:
            os.rename(staged, own / target.name)
    sync(target.parent)


def recover(folder: str | os.PathLike[str]) -> None:
    """Finish a write that a killed process had decided, after waiting for one that still goes on.

    Raises:
      WriteError: it cannot be finished, such as on a file system that is read-only.
    """
    folder = pathlib.Path(folder)
    if not (folder / COMMIT).is_dir() and not leftovers(folder):
        return
    try:
        with locked(folder):
            _roll_forward(folder)
            tidy(folder)
    except OSError as error:
        raise WriteError(
            f"{printable(folder)} holds files that a killed process was replacing, which cannot be"
            f" finished ({error.strerror or error}): make it writable once"
        ) from error


def open_unchanged(files: Callable[[], Iterable[pathlib.Path]], load: Callable[[], T]) -> T:
    """`load()`, again if another process has replaced the files meanwhile, so that it never sees
    some old and some new.

    Args:
      files: paths of all files that `load` opens, asked for before and after.
      load: opens them; what it raises counts only if the files have stayed the same.

    Raises:
      OSError: they are replaced again and again, or a killed process was replacing them and that
        cannot be finished.
      Exception: as `load`.
    """
    for attempt in range(_ATTEMPTS):
        before = _settled(files())
        failure = None
        try:
            result = load()
        except Exception as error:
            failure = error
        if before is not None and _state(files()) == before:
            if failure is not None:
                raise failure
            return result
        time.sleep(0.01 * 2**attempt)
    raise OSError("another process replaces it again and again: wait for that to end")


def _settled(files: Iterable[pathlib.Path]) -> list[tuple] | None:
    """State of files that are not just being moved, or None.

    A move that a killed process had begun is finished first.
    """
    files = list(files)
    for folder in {path.parent for path in files}:
        if (folder / COMMIT).is_dir():
            recover(folder)
    state = _state(files)
    return None if any(name == COMMIT and result for name, *result in state) else state


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str], patience: float | None = None) -> Iterator[None]:
    """Hold the lock of a folder, which the system drops when the process dies. File systems without
    locks go without.

    Args:
      folder: must exist.
      patience: seconds to wait for another process that holds it; `PATIENCE` if not given.

    Raises:
      TimeoutError: another process holds it for longer.
      OSError: there is no such folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    _Acquisition(descriptor, folder).wait(PATIENCE if patience is None else patience)
    try:
        yield
    finally:
        os.close(descriptor)


class _Acquisition:
    """Waits for the lock of a folder for a limited time.

    In a thread: the system serves those that wait in their order, while one that asked again and
    again would never get a lock that another process takes all the time; and a wait in the main
    thread has no limit.
    """

    def __init__(self, descriptor: int, folder: pathlib.Path):
        self._descriptor, self._folder = descriptor, folder
        self._guard, self._acquired, self._given_up = threading.Lock(), threading.Event(), False

    def wait(self, seconds: float) -> None:
        """Raise TimeoutError, and closes the descriptor, if another process holds the lock for
        longer.
        """
        try:
            advisory_locks.lock(self._descriptor)
            return
        except BlockingIOError:
            pass
        except OSError:  # no locks here
            return
        threading.Thread(target=self._acquire, daemon=True).start()
        try:
            self._acquired.wait(seconds)
        finally:
            with self._guard:
                self._given_up = not self._acquired.is_set()
        if self._given_up:
            raise TimeoutError(
                errno.ETIMEDOUT,
                f"another process is writing to {printable(self._folder)} and does not end",
            )

    def _acquire(self) -> None:
        with contextlib.suppress(OSError):
            advisory_locks.lock(self._descriptor, wait=True)
        with self._guard:
            self._acquired.set()
            if self._given_up:
                os.close(self._descriptor)


def _roll_forward(folder: pathlib.Path) -> None:
    """Finish a committed write. The caller holds the folder's lock."""
    commit = folder / COMMIT
    if not commit.is_dir():
        return
    # What others refer to first, what refers to them behind it, the file that says which is the
    # latest last.
    entries = sorted(
        commit.iterdir(),
        key=lambda path: (path.name == STATE, path.name.endswith(_REFERRING), path.name),
    )
    for path in entries:
        if len(entries) > 1 and path.name.endswith(_UNCHECKED):
            (folder / path.name).unlink(missing_ok=True)
    for path in entries:
        target = folder / path.name
        if path.is_dir() and target.is_dir() and not target.is_symlink():
            with staging(folder) as trash:
                os.rename(target, trash / path.name)
        os.replace(path, target)
    sync(folder)
    os.rmdir(commit)


def _exchanged(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Exchanges two folders in one step; False where the system or the file system cannot."""
    if os.name == "nt":  # where `CDLL(None)` is an error
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    return renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


def _sync_all(folder: pathlib.Path) -> None:
    """Force a folder with all that is in it to the disk."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(os.path.join(root, name))
        sync(root)


def _state(files: Iterable[pathlib.Path]) -> list[tuple]:
    """Return file attributes that change when one of the files is replaced, or is about to be."""
    result = []
    for path in files:
        for one in (path, path.parent / COMMIT):
            try:
                status = os.stat(one)
                result.append((one.name, status.st_ino, status.st_mtime_ns, status.st_size))
            except OSError:
                result.append((one.name,))
    return result
