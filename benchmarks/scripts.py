"""Runs of the repository's scripts: rows of benchmarks that train."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from benchmarks.results import FOLDER

ROOT = FOLDER.parent


class RunQueue:
    """Runs that go on side by side, each started once, in the order in which they were added.

    As a context: at its end all have ended. A fault leaves out those that wait, so that it is told
    now, not behind the whole queue.

    Args:
      jobs: runs at a time.

    Attributes:
      threads: that a run may compute in.
    """

    def __init__(self, jobs: int):
        self.threads = max(1, (os.cpu_count() or 1) // jobs)
        self._pool = concurrent.futures.ThreadPoolExecutor(jobs)
        self._runs: dict[Hashable, concurrent.futures.Future[Any]] = {}

    def __enter__(self) -> RunQueue:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)

    def add(self, key: Hashable, run: Callable[[], Any]) -> concurrent.futures.Future[Any]:
        """Queue a run, unless one with this key is there already.

        Returns:
          Where its result comes to.
        """
        if key not in self._runs:
            self._runs[key] = self._pool.submit(run)
        return self._runs[key]

    def ended(self) -> Iterator[Hashable]:
        """Yield the key of every run when it has ended; raises the fault of one."""
        keys = {run: key for key, run in self._runs.items()}
        for run in concurrent.futures.as_completed(keys):
            run.result()
            yield keys[run]


def run_script(
    what: str,
    script: str,
    arguments: Sequence[str],
    directory: pathlib.Path,
    log: pathlib.Path,
    threads: int,
    result: str = "results.json",
) -> None:
    """Runs a script whose result goes to `directory`, unless that is there.

    Args:
      what: this is, in messages.
      script: its file name.
      arguments: behind that.
      log: gets what it says.
      threads: that it computes in.
      result: name of the file that it writes last.

    Raises:
      SystemExit: it failed, or was stopped before its end.
    """
    if (directory / result).exists():
        return
    environment = os.environ | {
        "TQDM_DISABLE": "1",
        "OMP_NUM_THREADS": str(threads),
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": "1",
        # TensorFlow's default where there is AVX-512 only; with AVX2 its products are faster
        # too
        "TF_ENABLE_ONEDNN_OPTS": "1",
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as stream:
        command = [sys.executable, str(ROOT / script), *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
    if done.returncode:
        raise SystemExit(f"{what} failed with exit code {done.returncode}: see {log}")
    if not (directory / result).exists():
        raise SystemExit(f"{what} was stopped before its end: the same command continues it")
