"""Staging folders: where a write is prepared, beside its destination, and how those of killed
processes are removed.

A staging folder is named for the process that made it (machine, process id, start time of the
process) and is locked while it is in use. One whose process is gone is removed by the next write to
the same folder.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator

from fileio import advisory_locks

PREFIX = ".tfquant-tmp-"
# Seconds after which a staging folder of an unknown process is taken for abandoned: process ids of
# other machines cannot be looked up. No write takes so long between two files.
_ABANDONED = 24 * 3600


@contextlib.contextmanager
def staging(folder: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A new folder inside `folder`, removed in the end with everything that is left in it.

    Args:
      folder: must exist; staging folders that killed processes left there are removed first.

    Raises:
      OSError: it cannot be made.
    """
    folder = pathlib.Path(folder)
    tidy(folder)
    path = (
        folder
        / f"{PREFIX}{_machine()}-{os.getpid()}-{_started(os.getpid())}-{uuid.uuid4().hex[:8]}"
    )
    path.mkdir()
    descriptor = None
    try:
        # Some network file systems have no locks, Windows opens no folders; the name remains.
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            advisory_locks.lock(descriptor)
        yield path
    finally:  # also when a signal ends the process
        shutil.rmtree(path, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def leftovers(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Staging folders inside a folder, of living and of dead processes."""
    try:
        with os.scandir(folder) as entries:
            return [pathlib.Path(entry.path) for entry in entries if entry.name.startswith(PREFIX)]
    except OSError:
        return []


def tidy(folder: str | os.PathLike[str]) -> None:
    """Remove the staging folders of dead processes, as far as they can be removed."""
    for path in leftovers(folder):
        if _abandoned(path):
            shutil.rmtree(path, ignore_errors=True)


def _abandoned(path: pathlib.Path) -> bool:
    """Whether the process that made a staging folder is dead."""
    machine, process, started = _owner(path.name)
    if machine == _machine():
        # The lock tells where process ids do not: in containers that share a machine's name, each
        # has its own ids.
        return _started(process) != started and not _locked(path)
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False
    return age > _ABANDONED and not _locked(path)


def _owner(name: str) -> tuple[str, int, int]:
    """Machine, process id and start time in the name of a staging folder; no machine where it has
    none.
    """
    match = re.fullmatch(re.escape(PREFIX) + r"(.+)-(\d+)-(\d+)-[0-9a-f]{8}", name)
    return (match[1], int(match[2]), int(match[3])) if match else ("", 0, 0)


def _locked(path: pathlib.Path) -> bool:
    """Whether a process holds the lock of a staging folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        advisory_locks.lock(descriptor)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


@functools.cache
def _machine() -> str:
    """Name of this machine as part of a file name."""
    return re.sub(r"[^A-Za-z0-9.]", "_", platform.node())[:64] or "unknown"


def _started(process: int) -> int:
    """Return the start time of a process of this machine, in clock ticks since boot.

    0 if it is dead, 1 if the system does not tell.
    """
    try:
        fields = (
            pathlib.Path(f"/proc/{process}/stat")
            .read_text(errors="replace")
            .rpartition(")")[2]
            .split()
        )
        return 0 if fields[0] in "ZX" else int(fields[19])
    except (OSError, IndexError, ValueError):
        if os.path.isdir("/proc/self"):
            return 0
    if os.name == "nt":  # where `os.kill` ends the process
        return 1
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return 0
    except OSError:
        pass
    return 1
