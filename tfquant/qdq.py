"""Quantize-dequantize (QDQ) of a tensor to an integer grid, with the straight-through gradient.

All paths compute the same numbers. For a symmetric grid with largest code B and range amax, in float32:

    scale = B / amax,  step = amax / B,  y = round_half_even(clip(x, qmin * step, amax) * scale) * step

The gradient passes unchanged where `lower <= x <= upper`, ends included, and is zero outside; ranges get no gradient here.
An asymmetric range is first widened to contain zero and then moved so that zero is one of its codes; its values are those of the
unsigned grid on `x - lower`, moved back.

Per tensor, one native kernel (QuantizeAndDequantizeV4) does it in one pass over memory. Per channel, weights are small, and plain
operations serve ranges along any axes; the native kernel with ranges given exists for one axis only.
"""

from __future__ import annotations

import tensorflow as tf

from calib.grid import Grid

# A range of zero (a dead channel) is quantized as if it were this wide: the result is zero for all purposes, the scale finite.
SMALLEST_AMAX = 2.0**-100
# Beyond it the scale of an int2 grid is no normal float32 any more, and the width of an asymmetric range overflows.
LARGEST_AMAX = 2.0**126


def quantize_dequantize(
    x: tf.Tensor, lower: tf.Tensor, upper: tf.Tensor, grid: Grid, channel_axes: tuple[int, ...] = ()
) -> tf.Tensor:
    """Rounds `x` to the values an integer tensor with this grid and range can hold.

    Args:
      x: floating point tensor of any shape and type; the arithmetic is float32, the result has the type of `x`.
      lower, upper: float32; scalars, or one value for each combination of indices along `channel_axes`.
      grid: integer codes; a symmetric one uses amax = max(|lower|, |upper|).
      channel_axes: axes of `x` that have their own ranges, ascending.

    Returns:
      A tensor like `x`.
    """
    dtype = x.dtype
    x = tf.cast(x, tf.float32)
    if channel_axes:
        shape = [x.shape[axis] if axis in channel_axes else 1 for axis in range(x.shape.rank)]
        lower, upper = tf.reshape(lower, shape), tf.reshape(upper, shape)
    rounding = _round_with_plain_ops if channel_axes else _round_with_native_op
    if grid.symmetric:
        y = rounding(x, tf.maximum(tf.abs(lower), tf.abs(upper)), grid)
    else:
        lower, width = zero_in_range(lower, upper, grid)
        y = rounding(x - lower, width, grid) + lower
    return tf.cast(y, dtype)


def zero_in_range(lower: tf.Tensor, upper: tf.Tensor, grid: Grid) -> tuple[tf.Tensor, tf.Tensor]:
    """The range moved so that zero is exactly one of its codes: (new lower end, width)."""
    lower, upper = tf.minimum(lower, 0.0), tf.maximum(upper, 0.0)
    width = tf.maximum(upper - lower, SMALLEST_AMAX)
    step = width / float(grid.qmax - grid.qmin)
    return -tf.round(-lower / step) * step, width


def _round_with_native_op(x: tf.Tensor, amax: tf.Tensor, grid: Grid) -> tf.Tensor:
    amax = tf.maximum(amax, SMALLEST_AMAX)
    signed = grid.qmin < 0
    return tf.raw_ops.QuantizeAndDequantizeV4(
        input=x,
        input_min=-amax if signed else tf.zeros_like(amax),
        input_max=amax,
        signed_input=signed,
        num_bits=(grid.qmax - grid.qmin).bit_length(),
        range_given=True,
        round_mode="HALF_TO_EVEN",
        narrow_range=grid.qmin == -grid.qmax,
    )


@tf.custom_gradient
def _clip_straight_through(x: tf.Tensor, amax: tf.Tensor, scale: tf.Tensor, step: tf.Tensor, low: tf.Tensor):
    """`low` is the smallest value; gradient of `x` alone."""
    y = tf.round(tf.clip_by_value(x, low, amax) * scale) * step
    inside = tf.logical_and(x >= tf.where(low < 0, -amax, tf.zeros_like(amax)), x <= amax)

    def gradient(dy):
        return tf.where(inside, dy, tf.zeros_like(dy)), None, None, None, None

    return y, gradient


def _round_with_plain_ops(x: tf.Tensor, amax: tf.Tensor, grid: Grid) -> tf.Tensor:
    largest = float(grid.qmax if grid.symmetric else grid.qmax - grid.qmin)
    amax = tf.maximum(amax, SMALLEST_AMAX)
    step = amax / largest
    return _clip_straight_through(x, amax, largest / amax, step, float(grid.qmin) * step)
