"""Parts of the bit patterns of float32 numbers, as int32.

Integer operations on patterns are vectorised where comparisons of numbers, which must treat NaN
apart, are not; magnitudes have the order of their patterns.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

MANTISSA_BITS, BIAS = 23, 127
EXPONENT = 0x7F800000
_MAGNITUDE, _SIGN = 0x7FFFFFFF, -(2**31)


def pattern(number: float) -> int:
    """Pattern of a number that is exact in float32."""
    return int(np.float32(number).view(np.int32))


def magnitudes(numbers: tf.Tensor) -> tf.Tensor:
    """Patterns of the magnitudes of float32 numbers; those of NaN are larger than `EXPONENT`."""
    return tf.bitwise.bitwise_and(tf.bitcast(numbers, tf.int32), _MAGNITUDE)


def with_sign_of(numbers: tf.Tensor, rounded: tf.Tensor) -> tf.Tensor:
    """Return numbers rounded: float32 of the patterns `rounded`, with their signs; NaN stays."""
    sign = tf.bitwise.bitwise_and(tf.bitcast(numbers, tf.int32), _SIGN)
    signed = tf.bitcast(tf.bitwise.bitwise_or(rounded, sign), tf.float32)
    return tf.where(tf.math.is_nan(numbers), numbers, signed)
