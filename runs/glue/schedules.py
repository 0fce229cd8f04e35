"""Learning rate schedules with linear warm-up, by the names of `--lr-scheduler-type`; the curves
are Keras' own.
"""

from typing import Any

import keras
import tensorflow as tf

from tfquant.training import WarmupLinearDecay

RESTARTS = 2  # of cosine_with_restarts: cycles over the whole run
CONSTANT = ("constant", "constant_with_warmup")


@keras.saving.register_keras_serializable(package="runs.glue")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Linear rise to `peak`, followed by another schedule from its beginning on."""

    def __init__(
        self, peak: float, warmup_steps: int, then: keras.optimizers.schedules.LearningRateSchedule
    ):
        self.peak, self.warmup_steps, self.then = float(peak), int(warmup_steps), then

    def __call__(self, step: Any) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        rising = self.peak * step / max(self.warmup_steps, 1)
        return tf.where(
            step < self.warmup_steps, rising, self.then(tf.maximum(step - self.warmup_steps, 0.0))
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {"peak": self.peak, "warmup_steps": self.warmup_steps, "then": self.then}


def schedule(
    name: str, peak: float, total: int, warmup: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Return the schedule called `name` over `total` steps.

    Raises:
        ValueError: the warm-up does not end before the last step.
    """
    linear = WarmupLinearDecay(peak, total, warmup)  # which checks the warm-up
    if name == "linear":
        return linear
    kinds, left = keras.optimizers.schedules, total - warmup
    if name in CONSTANT:
        return WarmUp(
            peak,
            warmup if name == "constant_with_warmup" else 0,
            kinds.PolynomialDecay(peak, left, peak),
        )
    curves = {
        "cosine": lambda: kinds.CosineDecay(peak, left),
        "cosine_with_restarts": lambda: kinds.CosineDecayRestarts(
            peak, max(1, left // RESTARTS), t_mul=1.0
        ),
        "polynomial": lambda: kinds.PolynomialDecay(peak, left, end_learning_rate=0.0, power=2.0),
    }
    return WarmUp(peak, warmup, curves[name]())
