"""Transforms of parameters before rounding, differentiable.

    center:       w - mean(w)
    standardize:  (w - mean(w)) / std(w), of which n - 1 is the divisor

over the elements that share a scale. Values are rounded to the levels of the transformed tensor.

Sources: Qin et al. 2020, "IR-Net", arXiv:1909.10788, section 3.2 (Libra parameter binarization);
Liu et al. 2022, "BiT", arXiv:2205.13016, for centered weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def transformed(x: tf.Tensor, kind: str, axes: Sequence[int]) -> tf.Tensor:
    """Transform a float32 tensor.

    Args:
      x: values.
      kind: one of `tfquant.choices.TRANSFORMS`.
      axes: axes of `x` along which elements share a scale.
    """
    if kind == "none":
        return x
    centered = x - tf.reduce_mean(x, axes, keepdims=True)
    if kind == "center":
        return centered
    count = tf.size(x) // tf.size(tf.reduce_min(x, axes))
    squares = tf.reduce_sum(tf.square(centered), axes, keepdims=True)
    variance = squares / tf.cast(tf.maximum(count - 1, 1), tf.float32)
    # Of equal elements nothing is left; a division by zero would make their gradients NaN.
    safe = tf.where(variance > 0.0, variance, 1.0)
    return centered * tf.math.rsqrt(safe)
