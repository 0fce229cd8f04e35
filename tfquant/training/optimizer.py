"""Optimizer and learning-rate schedule of the original BERT."""

import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfquant.learned import PARAMETER_PATH

NOT_DECAYED = ("LayerNorm", "layer_norm", "bias", PARAMETER_PATH)


@keras.saving.register_keras_serializable(package="tfquant")
class BertAdamW(keras.optimizers.AdamW):
    """Adam with decoupled weight decay and without bias correction.

    m += (1 - beta_1) (g - m);  v += (1 - beta_2) (g^2 - v)
    w -= rate (m / (sqrt(v) + epsilon) + decay w)

    Source: Devlin et al. 2018, appendix A.2, as their code has it; decay after Loshchilov &
    Hutter, arXiv:1711.05101.

    Args:
        learning_rate: a number or a `keras.optimizers.schedules.LearningRateSchedule`.
        weight_decay: factor of the decoupled decay.
        not_decayed: regular expressions; variables whose path one of them is found in are not
          decayed.
    """

    def __init__(
        self,
        learning_rate: Any,
        weight_decay: float = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        not_decayed: Sequence[str] = NOT_DECAYED,
        name: str = "bert_adamw",
        **kwargs: Any,
    ):
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            name=name,
            **kwargs,
        )
        self.not_decayed = tuple(not_decayed)

    def build(self, var_list: Sequence[Any]) -> None:
        """Create the slots.

        The decay's exceptions are settled here because only here the paths are known. A decay of 0
        excepts all variables: Keras would subtract 0 from each of them in every step.
        """
        if self.built:
            return
        excluded = [
            v
            for v in var_list
            if not self.weight_decay
            or any(re.search(p, getattr(v, "path", v.name)) for p in self.not_decayed)
        ]
        self.exclude_from_weight_decay(var_list=excluded)
        super().build(var_list)

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: tf.Tensor) -> None:
        """Apply one fused update.

        Powers of beta given as zero switch the kernel's bias correction off.
        """
        index = self._get_variable_index(variable)
        dtype = variable.dtype
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.zeros((), dtype),
            beta2_power=tf.zeros((), dtype),
            lr=tf.cast(learning_rate, dtype),
            beta1=tf.constant(self.beta_1, dtype),
            beta2=tf.constant(self.beta_2, dtype),
            epsilon=tf.constant(self.epsilon, dtype),
            grad=tf.cast(gradient, dtype),
        )

    def slots(self) -> list[tuple[Any, Any]]:
        """Slots (m, v) of each variable, in the order of the variables that the optimizer was built
        with.
        """
        return list(zip(self._momentums, self._velocities, strict=True))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "not_decayed": list(self.not_decayed)}


@keras.saving.register_keras_serializable(package="tfquant")
class WarmupLinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly from 0 to `peak` during the warm-up, then falls linearly to 0 at the last
    step.

    The falling line starts above the peak, at `peak / (1 - warmup / total)` for step 0, so that
    both meet at the peak.

    Args:
        peak: highest rate.
        total_steps: step at which the rate is 0.
        warmup_steps: step at which the peak is reached; 0 starts at the peak.

    Raises:
        ValueError: the warm-up is negative or does not end before the last step.
    """

    def __init__(self, peak: float, total_steps: int, warmup_steps: int):
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(
                f"a warm-up of {warmup_steps} steps does not fit into {total_steps} steps of"
                " training; train for longer or warm up for a smaller part of it"
            )
        self.peak, self.total_steps, self.warmup_steps = (
            float(peak),
            int(total_steps),
            int(warmup_steps),
        )

    @classmethod
    def from_proportion(
        cls, peak: float, total_steps: int, proportion: float
    ) -> "WarmupLinearDecay":
        """The schedule whose warm-up is `int(total_steps * proportion)` steps."""
        if not 0.0 <= proportion < 1.0:
            raise ValueError(
                f"warm-up proportion {proportion} is out of range: it must be at least 0 and"
                " below 1"
            )
        return cls(peak, total_steps, int(total_steps * proportion))

    def __call__(self, step: Any) -> tf.Tensor:
        """Return the learning rate at a step, counted from 0."""
        step = tf.cast(step, tf.float32)
        # Divided by what is left after the warm-up: the same line as with the adjusted start,
        # without its rounding.
        left = tf.maximum(self.total_steps - step, 0.0) / (self.total_steps - self.warmup_steps)
        return self.peak * tf.minimum(left, step / self.warmup_steps if self.warmup_steps else 1.0)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            "peak": self.peak,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
        }
