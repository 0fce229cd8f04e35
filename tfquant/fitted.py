"""Quantize-dequantize with values that are fitted to the tensor at hand, in every call.

    t = transform(x),  levels = fit(t),  y = level of t

The levels get no gradient. That of `t` is, by `ste`: the identity; clipped, 0 for parameters (and
all values without a scale) beyond -1 ... 1, as in BinaryConnect and XNOR-Net, and for activations
beyond the outermost levels; or that of `tfquant.error_decay`. The gradient of the transform follows
by differentiation.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfquant import blocks, formats
from tfquant.error_decay import derivative
from tfquant.formats import fitted
from tfquant.formats.contract import Levels
from tfquant.gradients import identity, multiplied
from tfquant.layout import shared_axes
from tfquant.site import Site
from tfquant.transforms import transformed


def quantize_dequantize(
    x: tf.Tensor, site: Site, valid: tf.Tensor | None = None, decay: tf.Tensor | None = None
) -> tf.Tensor:
    """Quantize and dequantize a tensor, or the rows of a table.

    Args:
      x: floating point; the arithmetic is float32, the result has the type of `x`.
      site: with a fitted format.
      valid: broadcasts to `x`, above 0 for what is no padding; None counts all. Without effect on
        `per_token` and `per_block`.
      decay: float32 scalar, t of `ste: error_decay`; None, where no gradient is taken, stands for
        the identity.

    Returns:
      A tensor like `x`; all values of a group that holds NaN or infinity are NaN.
    """
    values, axes = tf.cast(x, tf.float32), axes_of(site, x.shape.rank)
    axis, size = site.block_axis, site.spec.layout.block_size or 0
    if axis is not None:
        axis %= x.shape.rank
        valid = blocks.cut(tf.ones_like(values), size, axis)
        values = blocks.cut(values, size, axis)
    elif site.spec.layout.per_token:
        valid = None
    values = transformed(values, site.spec.transform, axes)
    y = _rounded(values, levels_of(values, site, axes, valid), site, decay)
    return tf.cast(y if axis is None else blocks.joined(y, x, axis, size), x.dtype)


def axes_of(site: Site, rank: int) -> list[int]:
    """Axes along which elements share levels, of a tensor of `rank` or of its blocks."""
    if site.block_axis is not None:
        return [site.block_axis % rank + 1]
    if site.spec.layout.per_token:
        return [rank - 1]
    return shared_axes(rank, site.channel_axes)


def levels_of(x: tf.Tensor, site: Site, axes: list[int], valid: tf.Tensor | None = None) -> Levels:
    """Fit the levels of a site to a transformed tensor, without a gradient.

    Args:
      x: float32.
      site: with a fitted format.
      axes: from `axes_of`.
      valid: broadcasts to `x`, above 0 for elements that count; None counts all.

    Raises:
      TypeError: the format is not fitted.
    """
    format = formats.fitted_format(site.spec.format)
    if format is None:
        raise TypeError(f"the values of {site.spec.format} are not fitted to the tensor")
    return format.fit(tf.stop_gradient(x), axes, site.spec.scale, valid)


def _rounded(x: tf.Tensor, levels: Levels, site: Site, decay: tf.Tensor | None) -> tf.Tensor:
    """Round with the straight-through gradient of the spec."""
    gradient = site.spec.gradient
    if gradient.identity or (gradient.error_decay and decay is None):
        return identity(lambda x: fitted.rounded(x, levels), x)
    values: Any = levels.values
    lowest, highest = values[..., 0], values[..., -1]
    if gradient.error_decay and decay is not None:
        return multiplied(
            lambda x: fitted.rounded(x, levels), lambda x: highest * derivative(x, decay), x
        )
    if site.is_weight or site.spec.scale.source == "none":
        unsigned = site.spec.scale.unsigned is True
        lowest, highest = tf.constant(0.0 if unsigned else -1.0), tf.constant(1.0)

    def inside(x: tf.Tensor) -> tf.Tensor:
        if gradient.strict:
            return tf.cast((x > lowest) & (x < highest), tf.float32)
        return tf.cast((x >= lowest) & (x <= highest), tf.float32)

    return multiplied(lambda x: fitted.rounded(x, levels), inside, x)
