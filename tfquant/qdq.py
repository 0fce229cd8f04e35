"""Quantize-dequantize (QDQ, fake quantization): format x layout x scale x gradient.

All paths compute the same numbers. For a codebook whose quant_max is B and a range amax, in
float32:

    y = round(x in units of amax / B) * (amax / B)

with the rounding of the format, see `tfquant.formats`. An asymmetric range is first widened to
contain zero and then moved so that zero is one of its codes (`tfquant.scale`); its values are those
of the unsigned codebook on `x - lower`, moved back.
"""

from __future__ import annotations

import functools

import tensorflow as tf

from calib.codebook import Codebook
from tfquant import formats
from tfquant.gradients import (
    RANGE_GRADIENTS,
    Gradient,
    clipped_straight_through,
    identity,
    minus,
)
from tfquant.layout import aligned_shape
from tfquant.scale import amax_of, placed

INCLUSIVE = Gradient()


def quantize_dequantize(
    x: tf.Tensor,
    lower: tf.Tensor,
    upper: tf.Tensor,
    codebook: Codebook,
    channel_axes: tuple[int, ...] = (),
    *,
    gradient: Gradient = INCLUSIVE,
    range_gradient: str = "none",
    compiled: bool = True,
) -> tf.Tensor:
    """Quantize and dequantize `x`: round it to the values that a format represents within a range.

    Args:
      x: floating point tensor of any shape and type; the arithmetic is float32, the result has the
        type of `x`.
      lower, upper: float32; scalars, or one value for each combination of indices along
        `channel_axes`. Without these also of the rank of `x`, of size 1 along all axes that share a
        range.
      codebook: of the format; a symmetric one uses amax = max(|lower|, |upper|).
      channel_axes: axes of `x` that have their own ranges, ascending.
      gradient: straight-through variant for `x`.
      range_gradient: what the ends of the range get, see
        `tfquant.gradients.clipped_straight_through`.
      compiled: whether kernels may be compiled by XLA, which a graph for other programs must not
        need.

    Returns:
      A tensor like `x`.

    Raises:
      ValueError: unknown `range_gradient`.
    """
    if range_gradient not in RANGE_GRADIENTS:
        raise ValueError(
            f"unknown gradient of ranges {range_gradient!r}; known: {', '.join(RANGE_GRADIENTS)}"
        )
    dtype, format = x.dtype, formats.of(codebook)
    x = tf.cast(x, tf.float32)
    lower, upper = (tf.convert_to_tensor(end, tf.float32) for end in (lower, upper))
    if channel_axes:
        shape = aligned_shape(tuple(x.shape), channel_axes)
        lower, upper = tf.reshape(lower, shape), tf.reshape(upper, shape)
    if codebook.symmetric:
        offset, width = None, amax_of(lower, upper)
    else:
        offset, width = placed(lower, upper, codebook)
        x = minus(x, offset)
    rounding = functools.partial(format.round, codebook=codebook, compiled=compiled)
    if gradient.identity:
        y = identity(lambda x: rounding(x, width), x)
    elif format.has_gradient(width) and not gradient.strict and range_gradient == "none":
        y = rounding(x, width)
    else:
        y = clipped_straight_through(
            rounding,
            x,
            width,
            signed=codebook.symmetric and not codebook.unsigned,
            headroom=codebook.limit / codebook.quant_max,
            strict=gradient.strict,
            range_gradient=range_gradient,
        )
    return tf.cast(y if offset is None else y + offset, dtype)
