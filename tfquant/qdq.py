"""Quantize-dequantize (QDQ) of a tensor to an integer grid, with the straight-through gradient.

All paths compute the same numbers. For a symmetric grid with largest code B and range amax, in float32:

    scale = B / amax,  step = amax / B,  y = round_half_even(clip(x, qmin * step, amax) * scale) * step

The gradient passes unchanged where `lower <= x <= upper`, ends included (`strict`: not included), and is zero outside. A range
gets a gradient on request, see `quantize_dequantize`.
An asymmetric range is first widened to contain zero and then moved so that zero is one of its codes; its values are those of the
unsigned grid on `x - lower`, moved back.

Per tensor, one native kernel (QuantizeAndDequantizeV4) does it in one pass over memory. With ranges along axes the same kernel
rounds values that were divided by their steps: three passes, faster than plain operations and than the native kernel for one axis
(QuantizeAndDequantizeV3), which computes other numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import tensorflow as tf

from calib.grid import Grid

# A range of zero (a dead channel) is quantized as if it were this wide: the result is zero for all purposes, the scale finite.
SMALLEST_AMAX = 2.0**-100
# Beyond it the scale of an int2 grid is no normal float32 any more, and the width of an asymmetric range overflows.
LARGEST_AMAX = 2.0**126
RANGE_GRADIENTS = ("none", "rounding", "clipping")


def quantize_dequantize(
    x: tf.Tensor,
    lower: tf.Tensor,
    upper: tf.Tensor,
    grid: Grid,
    channel_axes: tuple[int, ...] = (),
    *,
    strict: bool = False,
    range_gradient: str = "none",
) -> tf.Tensor:
    """Rounds `x` to the values an integer tensor with this grid and range can hold.

    Args:
      x: floating point tensor of any shape and type; the arithmetic is float32, the result has the type of `x`.
      lower, upper: float32; scalars, or one value for each combination of indices along `channel_axes`. Without these also of the
        rank of `x`, of size 1 along all axes that share a range.
      grid: integer codes; a symmetric one uses amax = max(|lower|, |upper|).
      channel_axes: axes of `x` that have their own ranges, ascending.
      strict: no gradient reaches values that lie exactly on an end of the range.
      range_gradient: what the ends of the range get. `none`; `rounding`: the gradient of step sizes and thresholds (LSQ, TQT), to
        which rounded values add what rounding moved them by and clipped ones their bound; `clipping`: from clipped values alone
        (PACT).

    Returns:
      A tensor like `x`.
    """
    if range_gradient not in RANGE_GRADIENTS:
        raise ValueError(f"unknown gradient of ranges {range_gradient!r}; known: {', '.join(RANGE_GRADIENTS)}")
    dtype = x.dtype
    x = tf.cast(x, tf.float32)
    lower, upper = (tf.convert_to_tensor(end, tf.float32) for end in (lower, upper))
    if channel_axes:
        shape = [x.shape[axis] if axis in channel_axes else 1 for axis in range(x.shape.rank)]
        lower, upper = tf.reshape(lower, shape), tf.reshape(upper, shape)
    rounding = _round_along_axes if lower.shape.rank else _round_with_native_op
    if strict or range_gradient != "none":
        rounding = functools.partial(_round_with_gradient, rounding, strict, range_gradient)
    if grid.symmetric:
        y = rounding(x, tf.maximum(tf.abs(lower), tf.abs(upper)), grid)
    else:
        lower, width = zero_in_range(lower, upper, grid)
        y = rounding(_minus(x, lower), width, grid) + lower
    return tf.cast(y, dtype)


def zero_in_range(lower: tf.Tensor, upper: tf.Tensor, grid: Grid) -> tuple[tf.Tensor, tf.Tensor]:
    """The range moved so that zero is exactly one of its codes: (new lower end, width)."""
    lower, upper = tf.minimum(lower, 0.0), tf.maximum(upper, 0.0)
    width = tf.maximum(upper - lower, SMALLEST_AMAX)
    step = width / float(grid.qmax - grid.qmin)
    # Straight through: an offset that is learned moves freely, its use is rounded to a code.
    return lower + tf.stop_gradient(-tf.round(-lower / step) * step - lower), width


@tf.custom_gradient
def _minus(x: tf.Tensor, lower: tf.Tensor):
    """x - lower. TensorFlow's own gradient of `lower` sums a negated copy of the whole tensor."""
    return x - lower, lambda dy: (dy, -_sum(dy, lower))


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


def _round_along_axes(x: tf.Tensor, amax: tf.Tensor, grid: Grid) -> tf.Tensor:
    """Gradient of `x` alone."""
    largest = float(grid.quant_max)

    @tf.custom_gradient
    def rounded(x, amax):
        y = _round_with_native_op(x * (largest / amax), tf.constant(largest), grid) * (amax / largest)
        return y, lambda dy: (_inside(dy, x, amax, grid, strict=False), None)

    return rounded(x, tf.maximum(amax, SMALLEST_AMAX))


def _round_with_gradient(
    rounding: Callable, strict: bool, range_gradient: str, x: tf.Tensor, amax: tf.Tensor, grid: Grid
) -> tf.Tensor:
    """`rounding` with our own gradient of `x` and `amax`.

    y = code * amax / B: a clipped code adds y / amax to the gradient of amax; inside, rounding counts as straight through and takes
    x / amax off. With dx, which is dy inside and 0 outside, the sum over all is (dy . y - dx . x) / amax, or with clipped values
    alone (dy - dx) . y / amax: products of whole tensors, which need no copies of them.
    """

    @tf.custom_gradient
    def rounded(x, amax):
        y = rounding(x, amax, grid)

        def gradient(dy):
            limit = tf.maximum(amax, SMALLEST_AMAX)
            dx = _inside(dy, x, limit, grid, strict)
            if range_gradient == "none":
                return dx, None
            if range_gradient == "rounding":
                return dx, (_dot(dy, y, amax) - _dot(dx, x, amax)) / limit
            return dx, (_dot(dy, y, amax) - _dot(dx, y, amax)) / limit

        return y, gradient

    return rounded(x, amax)


def _inside(dy: tf.Tensor, x: tf.Tensor, limit: tf.Tensor, grid: Grid, strict: bool) -> tf.Tensor:
    """`dy` where `x` lies in the range, 0 elsewhere."""
    low = -limit if grid.qmin < 0 else tf.zeros_like(limit)
    if limit.shape.rank == 0 and not strict:  # one pass
        return tf.raw_ops.QuantizeAndDequantizeV4Grad(gradients=dy, input=x, input_min=low, input_max=limit).input_backprop
    if grid.qmin < 0:
        inside = tf.abs(x) < limit if strict else tf.abs(x) <= limit
    else:
        inside = tf.logical_and(x > low, x < limit) if strict else tf.logical_and(x >= low, x <= limit)
    return tf.where(inside, dy, 0.0)


def _dot(a: tf.Tensor, b: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Sum of products over all axes along which `like` does not vary, in the shape of `like`."""
    if like.shape.rank == 0:
        # As many products of rows as the last two axes are long: faster than one, and than a sum of products; and closer.
        shape = tf.shape(a)
        count, length = tf.reduce_prod(shape[:-2]), tf.reduce_prod(shape[-2:])
        return tf.reduce_sum(tf.matmul(tf.reshape(a, [count, 1, length]), tf.reshape(b, [count, length, 1])))
    return _sum(a * b, like)


def _sum(x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Over all axes along which `like` does not vary, in the shape of `like`."""
    if like.shape.rank == 0:
        return tf.reduce_sum(x)
    return tf.reduce_sum(x, [axis for axis, size in enumerate(like.shape) if size == 1], keepdims=True)
