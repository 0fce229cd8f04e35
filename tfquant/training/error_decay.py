"""Schedule of the error-decay gradient, see `tfquant.error_decay`."""

from __future__ import annotations

import math
from typing import Any

import keras

from tfquant.error_decay import T_MAX, T_MIN, t_at
from tfquant.model import QuantizedModel, engine_of
from tfquant.training.hooks import Hook


class ErrorDecaySchedule(Hook):
    """Sets t of the error-decay gradient before each step; a hook of `Trainer`.

    t is a function of the step, so that a resumed run follows the same schedule. In Keras' `fit`
    the same is `ErrorDecayCallback`.

    Args:
        model: from `tfquant.quantize` or `tfquant.load`, with sites of `ste: error_decay`.
        steps: number of training steps, after which t is `t_max`.
        every: steps between two changes of t; those of an epoch for the schedule of the source.
        t_min, t_max: first and last value.

    Raises:
        ValueError: an argument is out of range, or the model has no such site.
        TypeError: `model` is not a quantized model.
    """

    def __init__(
        self,
        model: QuantizedModel,
        steps: int,
        *,
        every: int = 1,
        t_min: float = T_MIN,
        t_max: float = T_MAX,
    ):
        if not isinstance(model, QuantizedModel):
            raise TypeError(
                "a schedule is for a model from tfquant.quantize or tfquant.load, got"
                f" {type(model).__name__}"
            )
        for name, value in (("steps", steps), ("every", every)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1")
        if not 0.0 < t_min <= t_max < math.inf:
            raise ValueError(
                f"t_min is {t_min} and t_max is {t_max}; they must be finite, with"
                " 0 < t_min <= t_max"
            )
        engine = engine_of(model)
        if not engine.uses_error_decay:
            raise ValueError(
                "an error-decay schedule has no effect, no site of this model has that gradient:"
                " set ste: error_decay for binary weights, or leave it out"
            )
        self._t, self._steps, self._every = engine.error_decay, steps, every
        self._t_min, self._t_max = t_min, t_max

    def before_step(self, step: int) -> None:
        step -= step % self._every
        self._t.assign(t_at(step, self._steps, self._t_min, self._t_max))


class ErrorDecayCallback(keras.callbacks.Callback):
    """Keras callback with the `ErrorDecaySchedule`: `model.fit(...,
    callbacks=[ErrorDecayCallback(steps=...)])`.

    Steps are those of the optimizer (`optimizer.iterations`), counted over all calls of `fit`; with
    `steps_per_execution` above 1 a change waits for the next execution.

    Args:
        **schedule: `steps`, `every`, `t_min`, `t_max`, as for `ErrorDecaySchedule`.

    Raises:
        ValueError, TypeError: when `fit` begins, as `ErrorDecaySchedule` does.
    """

    def __init__(self, **schedule: Any):
        super().__init__()
        self._arguments = schedule
        self._schedule: ErrorDecaySchedule | None = None

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        if self._schedule is None:  # a second fit goes on with the same
            self._schedule = ErrorDecaySchedule(model, **self._arguments)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        model: Any = self.model
        if self._schedule is not None:
            self._schedule.before_step(int(model.optimizer.iterations.numpy()))


def error_decay_hooks(model: Any, steps: int) -> list[Hook]:
    """Hooks that a training of a model needs for the error-decay gradient; none without.

    Args:
      model: quantized or not.
      steps: number of training steps.
    """
    used = isinstance(model, QuantizedModel) and engine_of(model).uses_error_decay
    return [ErrorDecaySchedule(model, steps)] if used else []
