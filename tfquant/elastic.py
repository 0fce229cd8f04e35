"""Elastic binarization: two values with a learned scale and shift (BiT).

    y = a * b(u),  u = (x - shift) / a
    signed:    b(u) = 1 where u >= 0, else -1;   inside is |u| <= 1
    unsigned:  b(u) = 1 where u >= 1/2, else 0;  inside is 0 <= u <= 1

Gradients: dy/dx is 1 inside, else 0, and dy/dshift minus that. dy/da is b(u) - u inside and b(u)
outside for values without a sign, b(u) for signed ones, as in the code of the source.

Source: Liu et al. 2022, "BiT: Robustly Binarized Multi-distilled Transformer", arXiv:2205.13016,
section 3.2.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfquant.scale import SMALLEST_AMAX


def binarized(x: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor, *, unsigned: bool) -> tf.Tensor:
    """Binarize a tensor.

    Args:
      x: floating point; the arithmetic is float32, the result has the type of `x`.
      scale, shift: float32 scalars, a and shift.
      unsigned: whether the values are 0 and a, else -a and a.

    Returns:
      A tensor like `x`; NaN stays NaN.
    """

    @tf.custom_gradient
    def rounded(x: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor) -> Any:
        units = (x - shift) / tf.maximum(scale, SMALLEST_AMAX)
        lowest, threshold = (0.0, 0.5) if unsigned else (-1.0, 0.0)
        code = tf.where(units >= threshold, 1.0, lowest)
        code = tf.where(tf.math.is_nan(units), units, code)

        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            inside = (units >= lowest) & (units <= 1.0)
            dx = tf.where(inside, dy, 0.0)
            slope = tf.where(inside, code - units, code) if unsigned else code
            return dx, tf.reduce_sum(dy * slope), -tf.reduce_sum(dx)

        return code * scale, gradient

    return tf.cast(rounded(tf.cast(x, tf.float32), scale, shift), x.dtype)
