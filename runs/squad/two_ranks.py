"""Training in two processes under mpirun for the embedded example."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

from runs.squad.command_line import arguments
from runs.squad.flags import Settings

RANKS = 2


def script() -> list[str]:
    """Return the arguments of Python that run run_squad.py.

    By path in the repository, as a module where it is installed.
    """
    package = (__package__ or "").removesuffix("runs.squad")  # ends with a dot where installed
    if package:
        return ["-m", f"{package}run_squad"]
    return [str(pathlib.Path(__file__).resolve().parents[2] / "run_squad.py")]


def mpirun_command(size: int) -> list[str] | None:
    """Return the mpirun command for `size` processes on this machine; None without MPI."""
    beside = pathlib.Path(sys.executable).with_name("mpirun")
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
    if mpirun is None:
        return None
    as_root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return [mpirun, *as_root, "--oversubscribe", "--bind-to", "none", "-np", str(size)]


def launcher() -> list[str] | None:
    """Return the command that starts run_squad.py in two processes; None where Horovod or mpirun is
    missing or there is one core only.
    """
    mpirun = mpirun_command(RANKS)
    if (
        importlib.util.find_spec("horovod") is None
        or mpirun is None
        or (os.cpu_count() or 1) < RANKS
    ):
        return None
    return [*mpirun, sys.executable, *script()]


def run(start: list[str], settings: Settings) -> dict[str, Any]:
    """Train in two processes with half the batch and half the learning rate each; return the
    figures of the run.

    Raises:
        RuntimeError: the processes failed; what they wrote has been passed through.
    """
    share = dataclasses.replace(
        settings,
        horovod=True,
        train_batch_size=settings.train_batch_size // RANKS,
        learning_rate=settings.learning_rate / RANKS,
    )
    threads = str(max(1, (os.cpu_count() or 1) // RANKS))
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "TF_NUM_INTRAOP_THREADS": threads,
        "TF_NUM_INTEROP_THREADS": "1",
    }
    done = subprocess.run(
        [*start, *arguments(share)], env=environment, stdout=2
    )  # stdout is for the result of this process
    if done.returncode:
        raise RuntimeError(f"{start[0]} ended with exit code {done.returncode}")
    return json.loads((pathlib.Path(settings.output_dir) / "results.json").read_text())["figures"]
