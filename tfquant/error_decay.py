"""Error-decay gradient of binary values (IR-Net): that of a sign, approximated ever more closely.

    d sign(x) / dx  is taken to be  k t (1 - tanh(t x)^2),   k = max(1 / t, 1)
    t = t_min 10^((i / n) log10(t_max / t_min)),             i = 0 ... n

Early in training (t = 0.1) it is close to the identity, late (t = 10) to a sign; in between t goes
up geometrically, i by steps or epochs. `t` is one variable of the model, `ErrorDecaySchedule` sets
it in `Trainer`, `ErrorDecayCallback` in `fit`, and checkpoints hold it.

Source: Qin et al. 2020, "Forward and Backward Information Retention for Accurate Binary Neural
Networks", arXiv:1909.10788, section 3.3.
"""

from __future__ import annotations

import tensorflow as tf

T_MIN, T_MAX = 0.1, 10.0


def derivative(x: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
    """Approximated derivative of the sign of `x`.

    Args:
      x: float32.
      t: float32 scalar above 0.
    """
    return tf.maximum(1.0, t) * (1.0 - tf.square(tf.tanh(t * x)))


def t_at(step: float, steps: int, t_min: float = T_MIN, t_max: float = T_MAX) -> float:
    """Value of t.

    Args:
      step: number of completed steps or epochs, i; beyond `steps` t stays `t_max`.
      steps: number of them in training, n.
      t_min, t_max: first and last value.
    """
    return t_min * (t_max / t_min) ** min(step / steps, 1.0)
