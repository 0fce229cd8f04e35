"""Scales: sources of ranges, and the conversion of a range to scale and zero point.

A range (lower, upper) is first *placed*: widened or moved to what the codebook can represent. Its
width in units of the scale is `quant_max`, so that scale = width / quant_max:

- symmetric: width = amax = max(|lower|, |upper|), zero point 0. This includes every codebook of
  fixed levels (float8 ...).
- asymmetric: widened to contain zero, then moved so that zero is exactly one of the codes; width =
  upper - lower.

TensorFlow graphs replace a division by a constant with a product with its reciprocal, which moves
an asymmetric range by the last bit of its step, and so the zero point by one where it lies half-way
between two codes. `scale_and_zero_of` therefore places ranges in a graph, as the simulation does.
Codebooks of fixed levels have no such difference: their scale is defined as that product.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from calib.codebook import Codebook, UniformCodebook
from tfquant.error_messages import shown

# A range of zero (a dead channel) is quantized as if it were this wide: the result is zero for all
# purposes, the scale finite.
SMALLEST_AMAX = 2.0**-100
# Beyond it the scale of an int2 codebook is no normal float32 any more, and the width of an
# asymmetric range overflows.
LARGEST_AMAX = 2.0**126


@dataclasses.dataclass(frozen=True)
class Scale:
    """Source of a tensor's range, and the part of it that the codes cover.

    Attributes:
      symmetric: range -amax..amax with zero point 0; otherwise min..max with a zero point.
      narrow_range: symmetric signed integers leave the lowest code out (-127..127).
      unsigned: True spends all codes on values >= 0; `"auto"` does so exactly where the graph shows
        that the tensor cannot be negative (after Softmax, Relu, Sigmoid); False never.
      dynamic: the range is computed in the graph, from the extremes of the tensor at hand, in every
        call: nothing is calibrated or stored. Of activations alone. See `tfquant.dynamic_range`.
    """

    symmetric: bool = True
    narrow_range: bool = True
    unsigned: bool | Literal["auto"] = False
    dynamic: bool = False

    def __post_init__(self):
        for field in ("symmetric", "narrow_range", "dynamic"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(
                    f"{field} must be true or false, got {shown(getattr(self, field))}"
                )
        if not isinstance(self.unsigned, bool) and self.unsigned != "auto":
            raise ValueError(f"unsigned must be true, false or 'auto', got {shown(self.unsigned)}")

    def describe(self) -> str:
        """Text for tables: `symmetric`, `symmetric full`, `unsigned` or `asymmetric`."""
        if not self.symmetric:
            return "asymmetric"
        if self.unsigned is True:
            return "unsigned"
        return "symmetric" if self.narrow_range else "symmetric full"


def amax_of(lower: tf.Tensor, upper: tf.Tensor) -> tf.Tensor:
    """Larger magnitude of the two ends of a range, of their shape."""
    return tf.maximum(tf.abs(lower), tf.abs(upper))


def symmetric_range(amax: tf.Tensor, codebook: Codebook) -> tuple[tf.Tensor, tf.Tensor]:
    """(lower, upper) of a symmetric codebook: -amax..amax, or 0..amax where it is unsigned."""
    return (tf.zeros_like(amax) if codebook.unsigned else -amax), amax


def placed(lower: tf.Tensor, upper: tf.Tensor, codebook: Codebook) -> tuple[tf.Tensor, tf.Tensor]:
    """Range that a tensor is quantized with, aligned with its axes.

    Args:
      lower, upper: float32 of any one shape.
      codebook: of the format.

    Returns:
      (lower end, width) of that shape; the width is at least `SMALLEST_AMAX`.
    """
    if codebook.symmetric:
        width = tf.maximum(amax_of(lower, upper), SMALLEST_AMAX)
        return symmetric_range(width, codebook)[0], width
    lower, upper = tf.minimum(lower, 0.0), tf.maximum(upper, 0.0)
    width = tf.maximum(upper - lower, SMALLEST_AMAX)
    step = width / float(codebook.quant_max)
    # Straight through: an offset that is learned moves freely, its use is rounded to a code.
    return lower + tf.stop_gradient(-tf.round(-lower / step) * step - lower), width


def scale_of(width: Any, codebook: Codebook) -> Any:
    """Scale of placed ranges.

    Args:
      width: float32 array or tensor.
      codebook: of the format.

    Returns:
      What `width` is, of its shape.
    """
    if codebook.uniform:
        return width / np.float32(codebook.quant_max)
    return width * np.float32(1.0 / np.float32(codebook.quant_max))


def width_of(lower: np.ndarray, upper: np.ndarray, codebook: Codebook) -> np.ndarray:
    """Width of unplaced ranges, at least `SMALLEST_AMAX`; float32 of the shape of the ends."""
    width = (
        np.maximum(abs(lower), abs(upper))
        if codebook.symmetric
        else np.maximum(upper, 0) - np.minimum(lower, 0)
    )
    return np.maximum(width, np.float32(SMALLEST_AMAX))


def scale_and_zero_of(lower: Any, upper: Any, codebook: Codebook) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of the exact ranges that the simulation uses.

    Args:
      lower, upper: float32 arrays, tensors or variables of any one shape.
      codebook: of the format.

    Returns:
      (scale, zero point) of that shape: float32 above 0, and int32 codes.
    """
    if codebook.symmetric:
        width = width_of(np.asarray(lower, np.float32), np.asarray(upper, np.float32), codebook)
        return scale_and_zero(None, width, codebook)
    spec = tf.TensorSpec(lower.shape, tf.float32)
    function = tf.function(
        functools.partial(placed, codebook=codebook), autograph=False, input_signature=[spec, spec]
    )
    start, width = function.get_concrete_function()(lower, upper)
    return scale_and_zero(start.numpy(), width.numpy(), codebook)


def scale_and_zero(
    lower: np.ndarray | None, width: np.ndarray, codebook: Codebook
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of a placed range.

    Args:
      lower, width: float32, from `placed`; the lower end is not read where the codebook is
        symmetric.
      codebook: of the format.

    Returns:
      (scale, zero point), see `scale_and_zero_of`.
    """
    scale = np.asarray(scale_of(width, codebook), np.float32)
    zero = np.zeros_like(scale)
    if lower is not None and isinstance(codebook, UniformCodebook) and not codebook.symmetric:
        zero = codebook.zero_point(lower, scale)
    return scale, zero.astype(np.int32)
