"""Losses and speed of training."""

import dataclasses
import time

import numpy as np


@dataclasses.dataclass(frozen=True)
class TrainSummary:
    """What a call of `Trainer.fit` did.

    Attributes:
        first_step, last_step: the model had made `first_step` steps before and `last_step` after.
        loss: mean loss of the last `log_every` steps; None when there was nothing to do.
        seconds: time spent, tracing and checkpoints included.
        examples_per_second: over all of that time.
        steady_examples_per_second: without the first step (tracing) and without writing checkpoints.
        checkpoint: prefix of the last checkpoint.
    """

    first_step: int
    last_step: int
    loss: float | None
    seconds: float
    examples_per_second: float
    steady_examples_per_second: float
    checkpoint: str


class Meter:
    """Losses and speed of the steps of one `fit`."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._losses: list[float] = []
        self._examples: list[int] = []
        self._seconds: list[float] = []

    def add(self, loss: float, examples: int, seconds: float) -> None:
        self._losses.append(loss)
        self._examples.append(examples)
        self._seconds.append(seconds)

    def recent_loss(self, count: int) -> float:
        finite = [loss for loss in self._losses[-count:] if np.isfinite(loss)]  # skipped steps may have others
        return float(np.mean(finite)) if finite else float("nan")

    def rate(self) -> float:
        """Examples a second over the last steps; the first, which traces, counts only while it is alone."""
        since = max(1, len(self._seconds) - 50) if len(self._seconds) > 1 else 0
        return sum(self._examples[since:]) / sum(self._seconds[since:])

    def summary(self, first: int, last: int, count: int, prefix: str) -> TrainSummary:
        total = time.perf_counter() - self._started
        since = 1 if len(self._seconds) > 1 else 0
        return TrainSummary(
            first_step=first,
            last_step=last,
            loss=self.recent_loss(count),
            seconds=total,
            examples_per_second=sum(self._examples) / total,
            steady_examples_per_second=sum(self._examples[since:]) / sum(self._seconds[since:]),
            checkpoint=prefix,
        )
