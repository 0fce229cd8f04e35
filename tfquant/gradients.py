"""Gradients of rounding: straight-through estimators (STE) of values, and gradients of ranges.

Rounding counts as the identity inside the range. The gradient of the values passes where they lie
between the ends, the ends included (`inclusive`, which is that of TensorFlow's kernels) or not
(`strict`), and is zero outside; `identity` passes it everywhere. "Inside" goes by the largest
representable value (`limit`), not by what amax is mapped to (`quant_max`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import tensorflow as tf

from tfquant.choices import STES
from tfquant.error_messages import shown
from tfquant.scale import SMALLEST_AMAX

RANGE_GRADIENTS = ("none", "rounding", "clipping")

# (values, amax) -> values rounded within that range.
Rounding = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Gradient:
    """Straight-through estimator variant of a quantizer.

    Attributes:
      ste: which values the gradient reaches: those in the range with its ends (`inclusive`) or
        without (`strict`), or all, also those that were clipped (`identity`). `error_decay` is for
        binary values, see `tfquant.error_decay`.
    """

    ste: Literal["inclusive", "strict", "identity", "error_decay"] = "inclusive"

    def __post_init__(self):
        if self.ste not in STES:
            known = ", ".join(map(repr, STES))
            raise ValueError(f"ste must be one of {known}, got {shown(self.ste)}")

    @property
    def strict(self) -> bool:
        return self.ste == "strict"

    @property
    def identity(self) -> bool:
        return self.ste == "identity"

    @property
    def error_decay(self) -> bool:
        return self.ste == "error_decay"


def clipped_straight_through(
    rounding: Rounding,
    x: tf.Tensor,
    amax: tf.Tensor,
    *,
    signed: bool,
    headroom: float = 1.0,
    strict: bool = False,
    range_gradient: str = "none",
) -> tf.Tensor:
    """Round with the clipped straight-through gradient of `x` and, on request, a gradient of
    `amax`.

    y = level * amax / quant_max: a clipped level adds y / amax to the gradient of amax; inside,
    rounding counts as straight through and takes x / amax off. With dx, which is dy inside and 0
    outside, the sum over all is (dy . y - dx . x) / amax, or with clipped values alone (dy - dx) .
    y / amax: products of whole tensors, which need no copies of them.

    Args:
      rounding: the kernel.
      x: float32 values.
      amax: float32, a scalar or of the rank of `x` with size 1 along axes that share a range.
      signed: whether the range is -amax..amax, else 0..amax.
      headroom: limit / quant_max of the format, how far beyond amax its values reach.
      strict: no gradient reaches values that lie exactly on an end of the range.
      range_gradient: what amax gets: `none`; `rounding`, that of step sizes and thresholds (LSQ,
        TQT), to which rounded values add what rounding moved them by and clipped ones their bound;
        `clipping`, from clipped values alone (PACT).

    Returns:
      A tensor like `x`.
    """

    @tf.custom_gradient
    def rounded(x, amax) -> Any:
        y = rounding(x, amax)

        def gradient(dy):
            width = tf.maximum(amax, SMALLEST_AMAX)
            dx = _inside(dy, x, width if headroom == 1.0 else width * headroom, signed, strict)
            if range_gradient == "none":
                return dx, None
            if range_gradient == "rounding":
                return dx, (_dot(dy, y, amax) - _dot(dx, x, amax)) / width
            return dx, (_dot(dy, y, amax) - _dot(dx, y, amax)) / width

        return y, gradient

    return rounded(x, amax)


def identity(function: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.Tensor:
    """Apply `function` with the gradient of the identity."""

    @tf.custom_gradient
    def straight_through(x) -> Any:
        return function(x), lambda dy: dy

    return straight_through(x)


def multiplied(
    function: Callable[[tf.Tensor], tf.Tensor],
    derivative: Callable[[tf.Tensor], tf.Tensor],
    x: tf.Tensor,
) -> tf.Tensor:
    """Apply `function` with a gradient that is multiplied by `derivative` of `x`."""

    @tf.custom_gradient
    def approximated(x) -> Any:
        return function(x), lambda dy: dy * derivative(x)

    return approximated(x)


def scaled(x: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Identity whose gradient is multiplied by `factor`."""

    @tf.custom_gradient
    def passed(x) -> Any:
        return tf.identity(x), lambda dy: dy * factor

    return passed(x)


@tf.custom_gradient
def minus(x: tf.Tensor, lower: tf.Tensor) -> Any:
    """Compute x - lower. TensorFlow's own gradient of `lower` sums a negated copy of the whole
    tensor.
    """
    return x - lower, lambda dy: (dy, -_sum(dy, lower))


def _inside(dy: tf.Tensor, x: tf.Tensor, limit: tf.Tensor, signed: bool, strict: bool) -> tf.Tensor:
    """Gradient `dy` where `x` lies in the range, 0 elsewhere."""
    low = -limit if signed else tf.zeros_like(limit)
    if limit.shape.rank == 0 and not strict:  # one pass
        return tf.raw_ops.QuantizeAndDequantizeV4Grad(
            gradients=dy, input=x, input_min=low, input_max=limit
        ).input_backprop
    if signed:
        inside = tf.abs(x) < limit if strict else tf.abs(x) <= limit
    else:
        inside = (
            tf.logical_and(x > low, x < limit) if strict else tf.logical_and(x >= low, x <= limit)
        )
    return tf.where(inside, dy, 0.0)


def _dot(a: tf.Tensor, b: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Sum of products over all axes along which `like` is constant, in the shape of `like`."""
    if like.shape.rank == 0:
        # As many products of rows as the last two axes are long: faster than one, and than a sum of
        # products; and closer.
        shape = tf.shape(a)
        count, length = tf.reduce_prod(shape[:-2]), tf.reduce_prod(shape[-2:])
        return tf.reduce_sum(
            tf.matmul(tf.reshape(a, [count, 1, length]), tf.reshape(b, [count, length, 1]))
        )
    return _sum(a * b, like)


def _sum(x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Sum over all axes along which `like` is constant, in the shape of `like`."""
    if like.shape.rank == 0:
        return tf.reduce_sum(x)
    return tf.reduce_sum(
        x, [axis for axis, size in enumerate(like.shape) if size == 1], keepdims=True
    )
