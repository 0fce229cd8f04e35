"""Soft rounding of AdaRound between the two neighbouring codes of a weight, with an annealed
regularizer.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv:2004.10568,
section 3.2.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from tfquant.choices import DECAYS

ROUNDINGS = ("hard_sigmoid", "sigmoid", "sigmoid_temp_decay")
# The rectified sigmoid reaches 0 and 1: it is stretched to this interval and cut.
_LOW, _HIGH = -0.1, 1.1
# A sigmoid never does; fractions nearer to 0 and 1 would start from infinity in float32.
_SMALLEST_FRACTION = 1e-6


def initial_alpha(fraction: np.ndarray, rounding: str, temperature: float = 1.0) -> np.ndarray:
    """Initial rounding variable, whose soft rounding equals `fraction`, so that the soft weight is
    the float one.

    Args:
      fraction: w / s - floor(w / s), in [0, 1).
      rounding: one of `ROUNDINGS`.
      temperature: of `sigmoid_temp_decay`, at the start.

    Returns:
      float32 of the shape of `fraction`.
    """
    r = np.asarray(fraction, np.float64)
    if rounding == "hard_sigmoid":
        # -ln((1.1 - r) / (r + 0.1)), written so that a half is exactly 0.
        return (2.0 * np.arctanh((2.0 * r - 1.0) / (_HIGH - _LOW))).astype(np.float32)
    r = np.clip(r, _SMALLEST_FRACTION, 1.0 - _SMALLEST_FRACTION)
    scale = temperature if rounding == "sigmoid_temp_decay" else 1.0
    return (scale * np.log(r / (1.0 - r))).astype(np.float32)


def soft_rounding(
    alpha: tf.Tensor, rounding: str, temperature: tf.Tensor | float = 1.0
) -> tf.Tensor:
    """Rectified sigmoid h in [0, 1] that is added to the lower code: differentiable in `alpha`."""
    if rounding == "hard_sigmoid":
        return tf.clip_by_value((_HIGH - _LOW) * tf.sigmoid(alpha) + _LOW, 0.0, 1.0)
    return tf.sigmoid(alpha / temperature if rounding == "sigmoid_temp_decay" else alpha)


def hard_rounding(alpha: tf.Tensor) -> tf.Tensor:
    """Hard rounding, 0 or 1; ties round up."""
    return tf.cast(alpha >= 0.0, alpha.dtype)


@tf.custom_gradient
def regularizer(h: tf.Tensor, beta: tf.Tensor):
    """Rounding regularizer, the sum of 1 - |2h - 1|^beta, a scalar.

    Zero where every h is 0 or 1. A high beta leaves all but the outermost alone.
    """
    centred = 2.0 * h - 1.0
    power = tf.pow(tf.abs(centred), beta - 1.0)
    value = tf.reduce_sum(1.0 - power * tf.abs(centred))
    return value, lambda dy: (-2.0 * dy * beta * power * tf.sign(centred), None)


def decayed(
    decay: str, progress: np.ndarray, start: float, end: float, shape: float | None = None
) -> np.ndarray:
    """Annealed value between `start` and `end`.

    Args:
      decay: one of `DECAYS`.
      progress: u in [0, 1], of any shape.
      shape: k, how bent the way is; None takes the default of `DECAYS`.

    Returns:
      float64 of the shape of `progress`.
    """
    u = np.asarray(progress, np.float64)
    k = DECAYS[decay] if shape is None else shape
    span = start - end
    if decay == "linear":
        return end + span * (1.0 - u)
    if decay == "cosine":
        return end + span * (1.0 + np.cos(np.pi * u)) / 2.0
    if decay == "power":
        return end + span * (1.0 - u**k)
    if decay == "exp":
        return start - span * np.expm1(-k * u) / math.expm1(-k)
    if decay == "log":
        return k * np.log((math.exp(end / k) - math.exp(start / k)) * u + math.exp(start / k))
    first = 1.0 / (1.0 + math.exp(k / 2.0))
    return start - span * (1.0 / (1.0 + np.exp(-k * (u - 0.5))) - first) / (1.0 - 2.0 * first)


def schedule(
    iterations: int,
    annealing: tuple[float, float],
    decay: str = "cosine",
    *,
    warmup: float = 0.2,
    decay_start: float = 0.0,
    shape: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Beta (or the temperature) of each iteration, and whether the regularizer is active in it.

    Args:
      iterations: how many; counted from 1.
      annealing: value at the start and at the end.
      decay, shape: see `decayed`.
      warmup: share of the iterations without regulariser; the value stands still.
      decay_start: share of what follows in which it still does.

    Returns:
      float32 and bool of shape [iterations].
    """
    t = np.arange(1, iterations + 1)
    begin = iterations * (warmup + (1.0 - warmup) * decay_start)
    progress = np.clip((t - begin) / max(iterations - begin, 1e-9), 0.0, 1.0)
    values = np.where(t < begin, annealing[0], decayed(decay, progress, *annealing, shape))
    return values.astype(np.float32), t >= warmup * iterations
