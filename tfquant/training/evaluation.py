"""Evaluation during training, and restoration of the best weights."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfquant.distributed.group import Group, Single
from tfquant.training.hooks import Hook
from tfquant.variables import resource, state_variable

STATE = "tfquant/state/evaluation/"
BEST = STATE + "best/"
NONE = -1  # step of an evaluation that there has not been


@dataclasses.dataclass(frozen=True)
class Best:
    """Best evaluation of a run.

    Attributes:
        step: steps made by then.
        score: what was compared.
    """

    step: int
    score: float


class Evaluation(Hook):
    """Evaluate the model every few steps of training and after the last; a hook of `Trainer`.

    Everything that decides which weights are best lies in the checkpoints, the weights included, so
    that a run that was cut off resumes with them. A step is scored behind its checkpoint: one that
    was cut off in between is scored when the run goes on.

    Args:
        evaluate: gives name -> score of the model as it is; called eagerly, on every rank of
          `group` after the same steps.
        due: steps made -> whether to evaluate then.
        metric: name of the score that decides which weights are best.
        greater: whether larger values of it are better.
        keep: name -> variable of what is kept when it is best, and is there again after training:
          weights and ranges. Nothing if
            not given; costs its size once more in memory and in checkpoints.
        group: the processes that train together; rank 0 has the last word where scores differ.
        tell: gets a line about every evaluation.
    """

    def __init__(
        self,
        evaluate: Callable[[], Mapping[str, float]],
        due: Callable[[int], bool],
        *,
        metric: str,
        greater: bool = True,
        keep: Mapping[str, Any] | None = None,
        group: Group | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ):
        self._evaluate, self._due, self._metric, self._greater = evaluate, due, metric, greater
        self._group, self._tell = group or Single(), tell
        self._kept = dict(keep or {})
        self._copies = {
            name: tf.Variable(resource(v), trainable=False, name="best")
            for name, v in self._kept.items()
        }
        self._last, self._best_step = (
            state_variable(np.int64(NONE), name) for name in ("last", "best")
        )
        self._best_score = state_variable(np.float64(0.0), "score")

    @property
    def best(self) -> Best | None:
        """Best evaluation so far, the first on ties; None before the first."""
        step = int(self._best_step.numpy())
        return None if step == NONE else Best(step, float(self._best_score.numpy()))

    def state(self) -> dict[str, tf.Variable]:
        """Checkpoint name -> variable."""
        numbers = {
            "last_step": self._last,
            "best_step": self._best_step,
            "best_score": self._best_score,
        }
        return {STATE + name: v for name, v in numbers.items()} | {
            BEST + name: copy for name, copy in self._copies.items()
        }

    def before_step(self, step: int) -> None:
        """Evaluate after the completed steps, if due and not done yet."""
        if step and self._due(step):
            self._score(step)

    def after_training(self, step: int) -> None:
        """Evaluate after the last step, and restore the best weights."""
        self._score(step)
        if self._kept and self.best:
            for name, variable in self._kept.items():
                resource(variable).assign(self._copies[name])
            self._tell(
                f"restored the weights of step {self.best.step}, the best: {self._metric}"
                f" {self.best.score:.4f}"
            )

    def _score(self, step: int) -> None:
        if step == int(self._last.numpy()):
            return
        scores = json.loads(self._group.gather(json.dumps(dict(self._evaluate())).encode())[0])
        if self._metric not in scores:
            raise ValueError(
                f"metric {self._metric!r} is not among the scores of the evaluation:"
                f" {', '.join(scores)}"
            )
        for name, value in scores.items():
            tf.summary.scalar(f"validation/{name}", value, step)
        self._last.assign(step)
        value, best = scores[self._metric], self.best
        better = best is None or (value > best.score if self._greater else value < best.score)
        if better and math.isfinite(value):
            self._best_step.assign(step)
            self._best_score.assign(value)
            for name, copy in self._copies.items():
                copy.assign(resource(self._kept[name]))
        self._tell(
            f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        )
