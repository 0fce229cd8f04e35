"""Loss and throughput of training."""

import dataclasses
import time

import numpy as np

from tfquant.distributed.group import Group


@dataclasses.dataclass(frozen=True)
class TrainSummary:
    """Summary of one call of `Trainer.fit`.

    Attributes:
        first_step, last_step: the model had made `first_step` steps before and `last_step` after.
        loss: mean loss of the last `log_every` steps; None when there was nothing to do.
        seconds: time spent, tracing and checkpoints included.
        examples_per_second: over all of that time, in this process.
        steady_examples_per_second: without the first step (tracing), and without writing
          checkpoints and scoring.
        checkpoint: prefix of the last checkpoint.
        ranks: number of processes.
        total_examples_per_second, total_steady_examples_per_second: the sums over all processes.
        allreduce_share: part of the time of a step, from 0 to 1, in which gradients are averaged
          over the processes, waiting for
            the slowest included, the first step left out; None for one process.
    """

    first_step: int
    last_step: int
    loss: float | None
    seconds: float
    examples_per_second: float
    steady_examples_per_second: float
    checkpoint: str
    ranks: int = 1
    total_examples_per_second: float = 0.0
    total_steady_examples_per_second: float = 0.0
    allreduce_share: float | None = None


class Meter:
    """Loss and throughput of the steps of one `fit`."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._losses: list[float] = []
        self._examples: list[int] = []
        self._seconds: list[float] = []
        self._reducing: list[float] = []

    def add(self, loss: float, examples: int, seconds: float, reducing: float) -> None:
        """Record a step.

        Mean loss, number of examples, seconds, and how many of these averaging over processes took.
        """
        self._losses.append(loss)
        self._examples.append(examples)
        self._seconds.append(seconds)
        self._reducing.append(reducing)

    def recent_loss(self, count: int) -> float:
        finite = [
            loss for loss in self._losses[-count:] if np.isfinite(loss)
        ]  # skipped steps may have others
        return float(np.mean(finite)) if finite else float("nan")

    def rate(self) -> float:
        """Examples per second over the last steps; the first, which traces, counts only while it is
        alone.
        """
        since = self._since(50)
        return sum(self._examples[since:]) / sum(self._seconds[since:])

    def allreduce_share(self, last: int = 50) -> float:
        """Share of the time of the last steps spent averaging gradients over processes."""
        since = self._since(last)
        return sum(self._reducing[since:]) / sum(self._seconds[since:])

    def _since(self, last: int) -> int:
        return max(1, len(self._seconds) - last) if len(self._seconds) > 1 else 0

    def summary(self, first: int, last: int, count: int, prefix: str, group: Group) -> TrainSummary:
        """Return the summary; call it on all ranks of `group`, which exchange their throughput."""
        total = time.perf_counter() - self._started
        since = self._since(len(self._seconds))
        own = sum(self._examples) / total, sum(self._examples[since:]) / sum(self._seconds[since:])
        rates = np.sum(
            [np.frombuffer(data) for data in group.gather(np.array(own).tobytes())], 0
        ).tolist()
        return TrainSummary(
            first_step=first,
            last_step=last,
            loss=self.recent_loss(count),
            seconds=total,
            examples_per_second=own[0],
            steady_examples_per_second=own[1],
            checkpoint=prefix,
            ranks=group.size,
            total_examples_per_second=rates[0],
            total_steady_examples_per_second=rates[1],
            allreduce_share=self.allreduce_share(len(self._seconds)) if group.size > 1 else None,
        )
