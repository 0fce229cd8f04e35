"""Blocks: consecutive elements along an axis that share a scale computed from them (microscaling).

    scale = rounded(largest magnitude of the block / quant_max)
    y = round(x / scale) * scale

The scale is rounded to its own number format, see `tfquant.scale.rounded_scale`; for the formats of
the Open Compute Project (MXFP8, MXFP6, MXFP4, MXINT8) blocks of 32 have a power of two. The last
block of an axis may be shorter. Padding of a batch lies in blocks of its own where blocks run along
an embedding; along tokens, as in the values of an attention, it shares one with the last tokens.

Sources: Open Compute Project, Microscaling Formats (MX) Specification 1.0, 2023; Rouhani et al.
2023, arXiv:2310.10537.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from calib.codebook import Codebook, ScaledCodebook
from tfquant import formats
from tfquant.formats import float32_bits
from tfquant.kernels import CompiledRows
from tfquant.scale import SMALLEST_AMAX, rounded_scale

if TYPE_CHECKING:
    from tfquant.spec import QuantSpec


def quantize_dequantize(
    x: tf.Tensor, spec: QuantSpec, axis: int, *, compiled: bool = True
) -> tf.Tensor:
    """Quantize and dequantize a tensor with a scale for each block, without a gradient.

    Args:
      x: floating point; the arithmetic is float32, the result has the type of `x`.
      spec: with a layout of blocks.
      axis: of `x`, along which blocks lie.
      compiled: as for `tfquant.qdq.quantize_dequantize`.

    Returns:
      A tensor like `x`. Infinite values saturate, and NaN stays NaN; neither counts for the scale.
    """
    if compiled and spec.scale.narrow_range:
        return tf.cast(_compiled(tf.cast(x, tf.float32), spec, axis), x.dtype)
    values, scale = scaled_blocks(tf.cast(x, tf.float32), spec, axis)
    codebook = spec.codebook
    width, unscaled = scale * float(codebook.quant_max), codebook
    if isinstance(codebook, ScaledCodebook):
        width, unscaled = scale, dataclasses.replace(codebook, quant_max=1.0)
    rounded = formats.of(codebook).round(values, width, unscaled, compiled=False)
    return tf.cast(joined(rounded, x, axis, spec.layout.block_size or 0), x.dtype)


def _compiled(x: tf.Tensor, spec: QuantSpec, axis: int) -> tf.Tensor:
    """Quantize and dequantize blocks by one compiled kernel, which has them as rows."""
    rank, size = x.shape.rank, spec.layout.block_size or 0
    order = [a for a in range(rank) if a != axis % rank] + [axis % rank]
    last = order == list(range(rank))
    moved = x if last else tf.transpose(x, order)
    blocks = cut(moved, size, rank - 1)
    rows = tf.reshape(blocks, [-1, size])
    if blocks.shape.is_fully_defined():
        rows = tf.ensure_shape(rows, [blocks.shape.num_elements() // size, size])
    y = joined(tf.reshape(_kernel(spec)(rows), tf.shape(blocks)), moved, rank - 1, size)
    return y if last else tf.transpose(y, np.argsort(order))


@functools.cache
def _kernel(spec: QuantSpec) -> CompiledRows:
    def rounded(rows: tf.Tensor, by: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> tf.Tensor:
        return by(rows, scales_of(_largest(rows, 1), spec))

    format, unscaled = formats.of(spec.codebook), spec.codebook
    if isinstance(unscaled, ScaledCodebook):
        unscaled = dataclasses.replace(unscaled, quant_max=1.0)

    def plainly(rows: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        return format.round(rows, scale * float(unscaled.quant_max), unscaled, compiled=False)

    return CompiledRows(
        lambda rows: rounded(rows, plainly), lambda rows: rounded(rows, format.rounded)
    )


def scaled_blocks(x: tf.Tensor, spec: QuantSpec, axis: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Cut a tensor into blocks and compute their scales.

    Args:
      x: float32 [..., n, ...].
      spec: with a layout of blocks of b elements.
      axis: that of size n.

    Returns:
      Values [..., ceil(n / b), b, ...], padded with zeros, and scales of that shape with 1 in place
      of b, float32.
    """
    axis %= x.shape.rank
    values = cut(x, spec.layout.block_size or 0, axis)
    return values, scales_of(_largest(values, axis + 1), spec)


def _largest(values: tf.Tensor, axis: int) -> tf.Tensor:
    """Largest finite magnitudes along an axis, which is kept."""
    magnitudes = float32_bits.magnitudes(values)
    finite = tf.where(magnitudes < float32_bits.EXPONENT, magnitudes, 0)
    return tf.bitcast(tf.reduce_max(finite, axis, keepdims=True), tf.float32)


def cut(x: tf.Tensor, size: int, axis: int) -> tf.Tensor:
    """Cut an axis into blocks: [..., n, ...] to [..., ceil(n / size), size, ...]."""
    n = x.shape[axis]
    length: Any = tf.shape(x)[axis] if n is None else n
    missing = -length % size
    if n is None or missing:
        x = tf.pad(x, [[0, missing if a == axis else 0] for a in range(x.shape.rank)])
    shape = tf.shape(x)
    blocks = None if n is None else (n + missing) // size
    known = [*x.shape[:axis], blocks, size, *x.shape[axis + 1 :]]
    target = tf.concat([shape[:axis], [shape[axis] // size, size], shape[axis + 1 :]], 0)
    return tf.ensure_shape(tf.reshape(x, target), known)


def scales_of(amax: tf.Tensor, spec: QuantSpec) -> tf.Tensor:
    """Scales of blocks from their largest magnitudes, float32 of one shape."""
    codebook: Codebook = spec.codebook
    # No smaller scale than that of other layouts.
    amax = tf.maximum(amax, np.float32(SMALLEST_AMAX * codebook.quant_max))
    return rounded_scale(amax, codebook, spec.scale.scale_format)


def joined(blocks: tf.Tensor, like: tf.Tensor, axis: int, size: int) -> tf.Tensor:
    """Undo the cut into blocks of `size` elements."""
    axis, rank = axis % like.shape.rank, like.shape.rank
    shape = tf.shape(blocks)
    target = tf.concat([shape[:axis], [shape[axis] * shape[axis + 1]], shape[axis + 2 :]], 0)
    x, wanted = tf.reshape(blocks, target), tf.shape(like)
    n = like.shape[axis]
    if n is None or n % size:
        x = tf.slice(x, [0] * rank, wanted)
    return tf.ensure_shape(x, like.shape)
