"""Runs of the repository's scripts: rows of benchmarks that train."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.results import FOLDER

ROOT = FOLDER.parent


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
