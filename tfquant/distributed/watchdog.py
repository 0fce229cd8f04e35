"""A time-out for waiting on other processes.

No collective operation of Horovod ends by itself when a rank is frozen.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

# seconds; more than rank 0 needs to write, score or export anything while the others wait
TIMEOUT = 1800.0
EXIT_CODE = 1


class Watchdog:
    """Ends the process, with one line, when it has waited for the other ranks for too long.

    From a thread, as the main one is inside the library that waits and hears no signal.

    Args:
      timeout: seconds; 0 for no limit.
      patience: seconds beyond that, which differ from rank to rank so that one of them speaks
        first.
      describe: text of the line, from where the process waits and for how many seconds it did.
    """

    def __init__(self, timeout: float, patience: float, describe: Callable[[str, float], str]):
        self._timeout, self._patience, self._describe = timeout, patience, describe
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._where = ""
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def waiting(self, where: str) -> Iterator[None]:
        """To be entered around what waits for the other ranks; `where` is said in the line.

        Inside of another it does nothing.
        """
        if not self._timeout or self._deadline is not None:
            yield
            return
        with self._changed:
            self._deadline, self._where = time.monotonic() + self._timeout + self._patience, where
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._watch, name="tfquant-watchdog", daemon=True
                )
                self._thread.start()
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._deadline = None
                self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while True:
                left = None if self._deadline is None else self._deadline - time.monotonic()
                if left is not None and left <= 0:
                    self._end()
                self._changed.wait(left)

    def _end(self) -> None:
        print(self._describe(self._where, self._timeout), file=sys.stderr, flush=True)
        os._exit(
            EXIT_CODE
        )  # the main thread cannot be interrupted; the launcher ends the other ranks


def identity() -> str:
    """Machine and id of this process, for `silent`."""
    return f"{platform.node()} {os.getpid()}"


def silent(identities: Sequence[str], own: int) -> str:
    """Which other ranks do not run, as far as this machine can tell.

    `rank 1 (process 4711) is stopped`; empty for none.
    """
    result = []
    for rank, text in enumerate(identities):
        machine, _, process = text.rpartition(" ")
        if rank == own or machine != platform.node() or not os.path.isdir("/proc/self"):
            continue
        state = _state(process)
        if state in "TtZX":
            what = "is stopped" if state in "Tt" else "is dead"
            result.append(f"rank {rank} (process {process}) {what}")
    return ", ".join(result)


def _state(process: str) -> str:
    """Letter of the kernel for the state of a process; X if it is gone."""
    try:
        return (
            pathlib.Path(f"/proc/{process}/stat")
            .read_text(errors="replace")
            .rpartition(")")[2]
            .split()[0]
        )
    except (OSError, IndexError):
        return "X"
