"""Softmax with approximations that posit hardware computes by a few bit operations.

With z = x - max(x) and E one of the exponentials below:

    e = E(z),  S = sum(e),  y = e / S  or  y = e * Rcp(S)

- Reciprocal of a posit: all bits but the sign inverted. For x = 2**q * (1 + f) that is
  2**-q * (1 - f/2) less one unit in the last place, up to 12.5 % too large half-way
  between powers.
- Sigmoid of a posit without exponent bits: the top bit inverted, then a logical shift right by 2.
- Exponential of x <= 0: 1 + exp(x) = 1 / sigmoid(-x), so exp(x) = Rcp(sigmoid(-x)) - 1, with posits
  of 16 bits. It stays above 0.03 down to x = -16; hence two variants that end at x = -5:
  `posit_exp` makes smaller numbers 0, `posit_exp_shifted` subtracts the value at -5 from all, which
  leaves no step.

Arguments of the exponential are rounded to posits of 16 bits without exponent bits, sums to those
of 16 bits with one.

Source: Yu et al. 2024, "8-bit Transformer Inference and Fine-tuning for Edge Accelerators".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from tfquant.choices import EXPONENTIALS
from tfquant.graph.attention import Attention, fused_softmax
from tfquant.kernels import CompiledKernel
from tfquant.rules import Softmax

_BITS = 16
_MANTISSA, _BIAS = 23, 127  # of float32
_SMALLEST = -5.0  # argument of the exponential below which it is 0
_SHIFT = 0.10925  # of the approximation of 1 + exp(x) at that argument, less 1


def replacements(
    attention: Iterable[Attention], approximation: Softmax
) -> dict[str, Callable[[list[tf.Tensor]], tf.Tensor]]:
    """Map operation name of each softmax in attention -> its approximation, a function of a list of
    its input; empty for `exact`.

    Args:
      attention: of one graph.
      approximation: of a recipe.

    Raises:
      ValueError: there is no attention, or a softmax is written out in primitive operations.
    """
    if approximation.exact:
        return {}

    def replace(inputs: list[tf.Tensor]) -> tf.Tensor:
        (x,) = inputs
        return softmax(x, approximation.exponential, approximation.posit_reciprocal)

    return dict.fromkeys((op.name for op in fused_softmax(attention)), replace)


def softmax(
    x: tf.Tensor, exponential: str = "posit_exp_shifted", reciprocal: bool = True
) -> tf.Tensor:
    """Approximated softmax along the last axis.

    Args:
      x: floating point [..., n]; the arithmetic is float32.
      exponential: one of `EXPONENTIALS`.
      reciprocal: whether the sum is inverted as a posit; otherwise a division.

    Returns:
      A tensor like `x`. Its rows sum to 1.0 ... 1.125 with the reciprocal. The gradient takes the
      derivative of the exponential to be its value, and that of the reciprocal to be its slope.

    Raises:
      ValueError: unknown exponential.
    """
    if exponential not in EXPONENTIALS:
        raise ValueError(f"unknown exponential {exponential!r}; known: {', '.join(EXPONENTIALS)}")
    dtype = x.dtype

    @tf.custom_gradient
    def approximated(x: tf.Tensor) -> Any:
        z = x - tf.reduce_max(x, -1, keepdims=True)
        e = tf.exp(z) if exponential == "exact" else _COMPILED[exponential](z, tf.constant(1.0))
        total = tf.reduce_sum(e, -1, keepdims=True)
        y = e * reciprocal_of(total) if reciprocal else e / total

        def gradient(dy: tf.Tensor) -> tf.Tensor:
            if not reciprocal:
                return y * (dy - tf.reduce_sum(y * dy, -1, keepdims=True))
            slope = _power_of_two(-2 * _exponent(total) - 1)
            return y * dy - slope * e * tf.reduce_sum(e * dy, -1, keepdims=True)

        return y, gradient

    return tf.cast(approximated(tf.cast(x, tf.float32)), dtype)


def posit_exp(x: tf.Tensor) -> tf.Tensor:
    """Approximated exponential of numbers of at most 0, 0 below -5; float32 of any shape.

    Its values are posits of 16 bits with one exponent bit.
    """
    return tf.where(x < _SMALLEST, 0.0, _unbounded_exp(x))


def posit_exp_shifted(x: tf.Tensor) -> tf.Tensor:
    """Approximated exponential of numbers of at most 0, less its value at -5, at least 0; float32
    of any shape.
    """
    return tf.maximum(_unbounded_exp(x) - _SHIFT, 0.0)


def _unbounded_exp(x: tf.Tensor) -> tf.Tensor:
    """Approximated exponential of numbers from -8 to 0, with that of -8 below.

    With c, the code of -x as a posit of 16 bits without exponent bits, sigmoid and reciprocal leave
    3 * 2**13 - 1 - floor(c / 4), a code between those of 1 and 2, which are 2**-13 apart. From 1 on
    posits are half as dense behind each power of two, and below 1 equally far apart.
    """
    y = tf.minimum(-x, 8.0)
    code = tf.round(y * 2.0**14)  # to even, as the codes of posits
    for power in range(3):
        start = 2.0**15 - 2.0 ** (14 - power)
        behind = start + tf.round((y * 2.0**-power - 1.0) * 2.0 ** (13 - power))
        code = tf.where(y < 2.0**power, code, behind)
    # A difference of constants would be combined with the one that follows, and rounded otherwise.
    return (2.0**13 - 1.0 - tf.floor(code * 0.25)) * 2.0**-13


# TensorFlow names the inputs of a compiled function after its parameters: `_` is no such name.
_COMPILED = {
    "posit_exp": CompiledKernel(lambda x, scale: posit_exp(x)),
    "posit_exp_shifted": CompiledKernel(lambda x, scale: posit_exp_shifted(x)),
}


def reciprocal_of(x: tf.Tensor) -> tf.Tensor:
    """Approximated 1 / x of positive float32 numbers, as posits of 16 bits and one exponent bit."""
    return from_posit(_inverted(to_posit(x, 1)), 1)


def to_posit(x: tf.Tensor, exponent_bits: int) -> tf.Tensor:
    """Codes of 16-bit posits, rounded on the bit string half to even, saturating.

    Args:
      x: float32, not negative.
      exponent_bits: up to 2.

    Returns:
      int32 like `x`; 0 for zero alone, other small numbers become the smallest posit.
    """
    bits = tf.cast(tf.bitcast(x, tf.int32), tf.int64)
    largest = (_BITS - 2) << exponent_bits
    power = tf.clip_by_value(_exponent(x), -largest - 1, largest)
    regime = _right(power, exponent_bits)  # floor
    ones = regime >= 0
    length = tf.where(ones, regime + 2, 1 - regime)
    prefix = tf.where(ones, 2 * (_one(regime + 1) - 1), 1)
    exponent = power - regime * 2**exponent_bits
    text = (prefix * 2**exponent_bits + exponent) * 2**_MANTISSA + (bits & (2**_MANTISSA - 1))
    dropped = length + exponent_bits + _MANTISSA - (_BITS - 1)
    kept, rest, half = _right(text, dropped), text & (_one(dropped) - 1), _one(dropped - 1)
    up = (rest > half) | ((rest == half) & (kept & 1 == 1))
    code = tf.clip_by_value(kept + tf.cast(up, tf.int64), 1, (1 << (_BITS - 1)) - 1)
    return tf.cast(tf.where(x > 0, code, 0), tf.int32)


def from_posit(code: tf.Tensor, exponent_bits: int) -> tf.Tensor:
    """Values of codes of positive 16-bit posits, and of 0.

    Args:
      code: int32 of any shape.
      exponent_bits: up to 2.

    Returns:
      float32 like `code`.
    """
    code64 = tf.cast(code, tf.int64)
    top = _right(code64, _BITS - 2) & 1
    # The run of equal bits ends at the highest bit that differs from the first.
    others = tf.where(top == 1, 2 ** (_BITS - 1) - 1 - code64, code64)
    end = _highest_bit(others)  # -1 where all bits are ones
    run = _BITS - 2 - end
    regime = tf.where(top == 1, run - 1, -run)
    left = tf.maximum(end, 0)  # bits behind the run
    tail = (code64 & (_one(left) - 1)) * 2**exponent_bits
    exponent = _right(tail, left)
    fraction = tf.cast(tail & (_one(left) - 1), tf.float32) / tf.cast(_one(left), tf.float32)
    power = regime * 2**exponent_bits + exponent
    return tf.where(code > 0, _power_of_two(power) * (1.0 + fraction), 0.0)


def _inverted(code: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(code, (1 << (_BITS - 1)) - 1)


def _exponent(x: tf.Tensor) -> tf.Tensor:
    """floor(log2(x)) of positive normal float32 numbers; int64."""
    return tf.cast(_right(tf.bitcast(x, tf.int32), _MANTISSA) - _BIAS, tf.int64)


def _power_of_two(power: tf.Tensor) -> tf.Tensor:
    """2**power of int64 powers from -126 to 127, exactly; float32."""
    return tf.bitcast(tf.cast((power + _BIAS) * 2**_MANTISSA, tf.int32), tf.float32)


def _right(number: tf.Tensor, places: Any) -> tf.Tensor:
    return tf.bitwise.right_shift(number, tf.cast(places, number.dtype))


def _one(power: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.left_shift(tf.ones_like(power), power)


def _highest_bit(code: tf.Tensor) -> tf.Tensor:
    """Position of the highest bit that is set, -1 for 0; int64."""
    return tf.where(code > 0, _exponent(tf.cast(code, tf.float32)), -1)
