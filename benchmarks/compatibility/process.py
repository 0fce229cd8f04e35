"""Checks of one model in a process of its own.

TensorFlow and Keras keep graphs and models alive, so that all rows in one process take more than
12 GiB; and a process may crash or hang without harm to the other rows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

_TIME_LIMIT = 900  # seconds of one model


def run_checks_apart(name: str) -> dict[str, Any]:
    """Return the checks of the model `name`, or `process` with the error that ended its process."""
    command = [sys.executable, "-m", "benchmarks.compatibility", "--one", name]
    environment = os.environ | {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "KERAS_BACKEND": "tensorflow",
        "TQDM_DISABLE": "1",
    }
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIME_LIMIT, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"process": {"error": f"no end within {_TIME_LIMIT} seconds"}}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"process": {"error": f"exit code {done.returncode}: {last[:300]}"}}
    return json.loads(done.stdout.strip().splitlines()[-1])
