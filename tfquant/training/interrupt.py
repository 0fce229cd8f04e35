"""A SIGTERM during training: the step is finished and saved, then the process ends with exit status 0."""

import os
import signal
import threading
from typing import Any


class TrainingInterrupted(SystemExit):
    """Training stopped after a SIGTERM; not caught, it ends the process with exit status 0.

    Attributes:
        step: steps made.
        checkpoint: prefix of the checkpoint of that step.
    """

    def __init__(self, step: int, checkpoint: str):
        super().__init__(0)
        self.step, self.checkpoint = step, checkpoint


class Terminate:
    """While entered, a SIGTERM only sets `asked`; one that nobody served is delivered on leaving without an error."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Terminate":
        self._installed = threading.current_thread() is threading.main_thread()  # Python allows it nowhere else
        if self._installed:
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True

    def served(self) -> None:
        self.asked = False

    def __exit__(self, kind: Any, *_: Any) -> None:
        if not self._installed:
            return
        signal.signal(signal.SIGTERM, signal.SIG_DFL if self._previous is None else self._previous)
        if self.asked and kind is None:  # it came after the last step had looked
            os.kill(os.getpid(), signal.SIGTERM)
