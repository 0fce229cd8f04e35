"""Schedule of quantization in training: its start, and start, end and rate of range updates."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfquant.model import QuantizedModel, engine_of
from tfquant.training.hooks import Hook
from tfquant.variables import resource


class QuantizationSchedule(Hook):
    """Steps at which quantization or range updates start and stop; a hook of `Trainer`.

    All is a function of the step, so that nothing of it is saved, and a resumed run follows the
    same schedule. In Keras' `fit` the same is `QuantizationCallback`.

    Args:
        model: from `tfquant.quantize` or `tfquant.load`, not traced by a training step yet.
        optimizer: what will train it; its `apply` is wrapped where ranges do not move as everything
          else does.
        quant_start_step: steps made in float before quantization is switched on; prediction is
          quantized all the time.
        range_start_step: steps before ranges move, be they learned or moving averages.
        range_freeze_step: steps after which they stay; None for never.
        range_rate: learning rate of learned ranges as a multiple of the optimizer's.

    Raises:
        ValueError: an argument is out of range, or has no effect on this model; the message names
          it.
        TypeError: `model` is not a quantized model.
    """

    def __init__(
        self,
        model: QuantizedModel,
        optimizer: keras.optimizers.Optimizer,
        *,
        quant_start_step: int = 0,
        range_start_step: int = 0,
        range_freeze_step: int | None = None,
        range_rate: float = 1.0,
    ):
        if not isinstance(model, QuantizedModel):
            raise TypeError(
                "a schedule is for a model from tfquant.quantize or tfquant.load, got"
                f" {type(model).__name__}"
            )
        _check(quant_start_step, range_start_step, range_freeze_step, range_rate)
        self._engine = engine_of(model)
        self._quant_start, self._rate = quant_start_step, range_rate
        self._range_start, self._range_freeze = range_start_step, range_freeze_step
        learned = [
            v
            for q in self._engine.quantizers.values()
            if q.learned
            for v in q.learned.variables.values()
        ]
        moved = range_start_step > 0 or range_freeze_step is not None
        if range_rate != 1.0 and not learned:
            raise ValueError(
                f"a learning rate of ranges has no effect (range_rate is {range_rate}, but no range"
                " of this model is learned): set update to lsq, tqt or pact, or leave it out"
            )
        if (
            moved
            and not learned
            and all(q.site.spec.update == "frozen" for q in self._engine.quantizers.values())
        ):
            raise ValueError(
                "range_start_step and range_freeze_step have no effect, all ranges are frozen: set"
                " update in the recipe, or leave them out"
            )
        if quant_start_step:
            self._engine.latent = True
            model.train_function = None  # Keras may hold a step without the switch
        if learned and (moved or range_rate != 1.0):
            _scale_updates(optimizer, learned, self._engine.quantizers.rate)

    def before_step(self, step: int) -> None:
        moving = self._range_start <= step and (
            self._range_freeze is None or step < self._range_freeze
        )
        self._engine.quantizers.rate.assign(self._rate if moving else 0.0)
        self._engine.quantizing.assign(step >= self._quant_start)


class QuantizationCallback(keras.callbacks.Callback):
    """Keras callback with the `QuantizationSchedule`: `model.fit(...,
    callbacks=[QuantizationCallback(...)])`.

    Steps are those of the optimizer (`optimizer.iterations`), counted over all calls of `fit`; with
    `steps_per_execution` above 1 a change waits for the next execution.

    Args:
        **schedule: `quant_start_step`, `range_start_step`, `range_freeze_step`, `range_rate`, as
          for `QuantizationSchedule`.

    Raises:
        ValueError, TypeError: when `fit` begins, as `QuantizationSchedule` does.
    """

    def __init__(self, **schedule: Any):
        super().__init__()
        self._arguments = schedule
        self._schedule: QuantizationSchedule | None = None

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        if self._schedule is None:  # a second fit goes on with the same
            self._schedule = QuantizationSchedule(model, model.optimizer, **self._arguments)
            model.train_function = None

    def on_train_end(self, logs: Any = None) -> None:
        start, made = self._arguments.get("quant_start_step", 0), self._steps()
        if made <= start and start:
            warnings.warn(
                f"quant_start_step={start} was not reached: all {made} steps were made in float",
                stacklevel=2,
            )

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._schedule is not None:
            self._schedule.before_step(self._steps())

    def _steps(self) -> int:
        """Number of completed optimizer steps."""
        model: Any = self.model
        return int(model.optimizer.iterations.numpy())


def _check(quant_start: int, range_start: int, range_freeze: int | None, rate: float) -> None:
    for name, value in (("quant_start_step", quant_start), ("range_start_step", range_start)):
        if value < 0:
            raise ValueError(f"{name} is {value}; it must not be negative")
    if range_freeze is not None and range_freeze <= range_start:
        raise ValueError(
            f"range_freeze_step is {range_freeze}; it must be above range_start_step"
            f" ({range_start})"
        )
    if not 0.0 < rate < float("inf"):
        raise ValueError(
            f"range_rate is {rate}; it must be above 0 and finite (for fixed ranges set update to"
            " frozen)"
        )


def _scale_updates(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[tf.Variable], rate: tf.Variable
) -> None:
    """Multiply the updates of `variables` by `optimizer` with `rate`; at rate 0 they do not change,
    whatever the momentum.

    Taken at the outermost call, so that it holds for every optimizer, and for its decay and
    averages of weights too.
    """
    apply, scaled = optimizer.apply, {id(v) for v in variables}

    def apply_scaled(
        grads: Sequence[tf.Tensor], trainable_variables: Sequence[Any] | None = None
    ) -> None:
        trained = (
            trainable_variables
            if trainable_variables is not None
            else optimizer._trainable_variables
        )
        ranges = [v for v in trained if id(resource(v)) in scaled]
        before = [tf.identity(resource(v)) for v in ranges]
        with tf.control_dependencies(before):
            apply(grads, trainable_variables)
        for variable, old in zip(ranges, before, strict=True):
            new = tf.convert_to_tensor(resource(variable))
            value = tf.where(rate == 1.0, new, old + rate * (new - old))
            constraint = getattr(
                variable, "constraint", None
            )  # a larger step may lead past what the smaller kept to
            resource(variable).assign(value if constraint is None else constraint(value))

    optimizer.apply = apply_scaled
