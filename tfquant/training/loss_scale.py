"""Dynamic loss scaling: keep small gradients above the smallest float16 number."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfquant.variables import state_variable

LARGEST = (
    2.0**24
)  # without a bound the scale itself would become infinite, from where halving does not lead back


class DynamicLossScale:
    """Loss factor that grows while gradients are finite and shrinks when they are not.

    Source: Micikevicius et al., Mixed Precision Training, arXiv:1710.03740, section 3.2.
    Powers of two: scaling is exact.

    Args:
        initial: the first factor.
        growth_steps: after so many finite steps in a row the factor is doubled.
    """

    def __init__(self, initial: float = 2.0**15, growth_steps: int = 1000):
        if not 1.0 <= initial <= LARGEST:
            raise ValueError(
                f"initial loss scale {initial} is out of range: it must be from 1 to {LARGEST:.0f}"
            )
        if growth_steps < 1:
            raise ValueError(f"growth_steps is {growth_steps}; it must be at least 1")
        self.growth_steps = growth_steps
        self.factor = state_variable(np.float32(initial), "loss_scale")
        self.good_steps = state_variable(np.int64(0), "good_steps")

    def state(self) -> dict[str, tf.Variable]:
        """Map name -> variable, for everything that a resumed run needs."""
        return {"loss_scale": self.factor, "loss_scale_good_steps": self.good_steps}

    def scale(self, loss: tf.Tensor) -> tf.Tensor:
        """Multiply the loss by the factor."""
        return loss * tf.cast(self.factor, loss.dtype)

    def unscale(self, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Divide the gradients by the factor."""
        return [gradient / tf.cast(self.factor, gradient.dtype) for gradient in gradients]

    def good(self) -> None:
        """Record a finite step, in the graph."""
        count = self.good_steps.assign_add(1)
        grown = count >= self.growth_steps
        self.factor.assign(tf.where(grown, tf.minimum(self.factor * 2.0, LARGEST), self.factor))
        self.good_steps.assign(tf.where(grown, tf.zeros_like(count), count))

    def bad(self) -> tf.Tensor:
        """Record a step that is not finite, in the graph.

        Whether a smaller factor is left to try.
        """
        left = self.factor > 1.0
        with tf.control_dependencies([left]):
            self.factor.assign(tf.maximum(self.factor / 2.0, 1.0))
            self.good_steps.assign(tf.zeros_like(self.good_steps))
        return left
