"""How tests get several ranks: threads of this process, or two processes under mpirun."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from runs.squad.two_ranks import mpirun_command
from tfquant.distributed.group import fake_groups

ROOT = pathlib.Path(__file__).resolve().parents[2]
MPIRUN = pathlib.Path(sys.executable).parent / "mpirun"
ONE_THREAD = {
    "HOROVOD_CYCLE_TIME": "1",
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
}
needs_ranks = pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None or not MPIRUN.exists(),
    reason="needs Horovod and mpirun: make env",
)


def on_each(groups, work) -> list:
    """What `work(group)` returned, or raised, in a thread for each group, by rank."""
    results = [None] * len(groups)

    def target(group):
        try:
            results[group.rank] = work(group)
        except Exception as error:  # of a thread, for the test to look at
            results[group.rank] = error

    threads = [threading.Thread(target=target, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def on_ranks(size: int, work) -> list:
    """`on_each` of so many; a rank that waits for one that gave up fails after a minute."""
    return on_each(fake_groups(size), work)


def two_ranks(*arguments) -> subprocess.CompletedProcess:
    """A script run by two processes; fails with what they wrote if they did."""
    command = [*mpirun_command(2), sys.executable, *arguments]
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT), "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def found_by_two_ranks(script: str, *arguments) -> list[dict]:
    """The objects that a script beside this file printed behind FOUND, one a rank."""
    done = two_ranks(pathlib.Path(__file__).with_name(script), *arguments)
    lines = [
        json.loads(line.partition("FOUND ")[2])
        for line in done.stdout.splitlines()
        if "FOUND " in line
    ]
    assert len(lines) == 2, done.stderr[-2000:]
    return lines
