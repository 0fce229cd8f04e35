"""Stop signals during training.

The step is finished and saved, then the process ends with exit status 0.
"""

import os
import signal
import threading
from typing import Any

# What schedulers and people send; mpirun hands SIGUSR1 on to its ranks, and kills them a moment
# after a SIGTERM. Windows has no SIGUSR1.
STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class TrainingInterrupted(SystemExit):
    """Training stopped after a signal of `STOPPING`; uncaught, it ends the process with exit status
    0.

    Attributes:
        step: steps made.
        checkpoint: prefix of the checkpoint of that step.
    """

    def __init__(self, step: int, checkpoint: str):
        super().__init__(0)
        self.step, self.checkpoint = step, checkpoint


class Terminate:
    """Context in which a stop signal only sets `asked`; an unhandled one is raised again on leaving
    without an error.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None

    def __enter__(self) -> "Terminate":
        self._installed = (
            threading.current_thread() is threading.main_thread()
        )  # Python allows it nowhere else
        if self._installed:
            self._previous = {number: signal.signal(number, self._ask) for number in STOPPING}
        return self

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = signal.Signals(number)

    def served(self) -> None:
        self.asked = None

    def __exit__(self, kind: Any, *_: Any) -> None:
        if not self._installed:
            return
        for number, previous in self._previous.items():
            signal.signal(number, signal.SIG_DFL if previous is None else previous)
        if self.asked and kind is None:  # it came after the last step had looked
            os.kill(os.getpid(), self.asked)
