"""Signals outside of training: the run ends at once with a line.

`tfquant.training` does it better while it trains: it finishes the step and saves.
"""

import functools
import signal
import sys
from typing import Any

from tfquant.training.interrupt import STOPPING


def end_on_signals(script: str) -> None:
    """End the process on SIGTERM and SIGUSR1 with the exit status of one that was killed; files are
    written whole or not at all.
    """
    for number in STOPPING:
        signal.signal(number, functools.partial(_end, script))


def _end(script: str, number: int, frame: Any) -> None:
    print(
        f"{script}: stopped by {signal.Signals(number).name} outside of training: the same command"
        " goes on with what is finished, training from its last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    raise SystemExit(128 + number)
