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

A scale may itself be rounded (`Scale.scale_format`): to a power of two, or to a small floating
point number. `rounded_scale` does it, and ranges are moved so that they have that scale.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from calib.codebook import Codebook, ScaledCodebook, UniformCodebook
from tfquant.error_messages import shown

# A range of zero (a dead channel) is quantized as if it were this wide: the result is zero for all
# purposes, the scale finite.
SMALLEST_AMAX = 2.0**-100
# Beyond it the scale of an int2 codebook is no normal float32 any more, and the width of an
# asymmetric range overflows.
LARGEST_AMAX = 2.0**126


SOURCES = ("stored", "dynamic", "delayed", "none")
SCALE_FORMATS = ("float32", "power_of_two", "nearest_power_of_two", "e8m0", "e5m3")
_HISTORY = 50  # steps of a delayed scale
_E5M3 = (3, -14, 61440.0)  # bits of mantissa, smallest exponent, largest value; without a sign


@dataclasses.dataclass(frozen=True)
class Scale:
    """Source of a tensor's range, and the part of it that the codes cover.

    Attributes:
      symmetric: range -amax..amax with zero point 0; otherwise min..max with a zero point.
      narrow_range: symmetric signed integers leave the lowest code out (-127..127).
      unsigned: True spends all codes on values >= 0; `"auto"` does so exactly where the graph shows
        that the tensor cannot be negative (after Softmax, Relu, Sigmoid); False never.
      source: `stored`: calibrated, or set in training. `dynamic`: computed in the graph, from the
        extremes of the tensor at hand, in every call, see `tfquant.dynamic_range`. `delayed`: the
        largest magnitude of the last `history` training steps, see `tfquant.delayed`. `none`: the
        scale is 1, so that values are rounded to those of the format themselves.
      history: number of training steps that a delayed scale looks back; None elsewhere.
      quant_max: what the largest magnitude is mapped to, in units of the scale; None for the choice
        of the format. Gradients in posit8_1, for example, keep more bits with 64 than with 4096.
      scale_format: number format of the scale: `float32`; `power_of_two`, rounded up so that
        nothing is clipped; `nearest_power_of_two`, rounded in the logarithm; `e8m0`, rounded down
        as the Open Compute Project's microscaling formats do; `e5m3`, a float of 8 bits without a
        sign.
    """

    symmetric: bool = True
    narrow_range: bool = True
    unsigned: bool | Literal["auto"] = False
    source: Literal["stored", "dynamic", "delayed", "none"] = "stored"
    history: int | None = None
    quant_max: float | None = None
    scale_format: Literal["float32", "power_of_two", "nearest_power_of_two", "e8m0", "e5m3"] = (
        "float32"
    )

    def __post_init__(self):
        for field in ("symmetric", "narrow_range"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(
                    f"{field} must be true or false, got {shown(getattr(self, field))}"
                )
        if not isinstance(self.unsigned, bool) and self.unsigned != "auto":
            raise ValueError(f"unsigned must be true, false or 'auto', got {shown(self.unsigned)}")
        for field, known in (("source", SOURCES), ("scale_format", SCALE_FORMATS)):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"unknown {field} {shown(getattr(self, field))}; known: {', '.join(known)}"
                )
        if not self.symmetric and (self.source in ("delayed", "none") or self.rounds_scale):
            raise ValueError(
                f"source {self.source!r} with scale_format {self.scale_format!r} has no zero point:"
                " set symmetric: true"
            )
        self._check_history()
        self._check_quant_max()

    def _check_history(self) -> None:
        if self.source != "delayed":
            if self.history is not None:
                raise ValueError(
                    f"history belongs to source: delayed, got source {self.source!r} with history"
                    f" {shown(self.history)}"
                )
        elif self.history is None:
            object.__setattr__(self, "history", _HISTORY)
        elif isinstance(self.history, bool) or not isinstance(self.history, int):
            raise ValueError(f"history must be a number of steps, got {shown(self.history)}")
        elif self.history < 1:
            raise ValueError(f"history must be at least 1 step, got {self.history}")

    def _check_quant_max(self) -> None:
        number = isinstance(self.quant_max, (int, float)) and not isinstance(self.quant_max, bool)
        if self.quant_max is not None and (not number or not 0 < self.quant_max < math.inf):
            raise ValueError(f"quant_max must be a number above 0, got {shown(self.quant_max)}")
        if self.source == "none" and (self.quant_max is not None or self.rounds_scale):
            raise ValueError("quant_max and scale_format are of a scale, and source: none has none")

    @property
    def dynamic(self) -> bool:
        """Whether the range is that of the tensor at hand."""
        return self.source == "dynamic"

    @property
    def calibrated(self) -> bool:
        """Whether calibration finds the range."""
        return self.source in ("stored", "delayed")

    @property
    def rounds_scale(self) -> bool:
        """Whether scales are rounded to a number format."""
        return self.scale_format != "float32"

    def describe(self) -> str:
        """Text for tables: `symmetric`, `symmetric full`, `unsigned` or `asymmetric`."""
        text = "symmetric" if self.narrow_range else "symmetric full"
        if not self.symmetric:
            text = "asymmetric"
        elif self.unsigned is True:
            text = "unsigned"
        if self.quant_max is not None:
            text += f" quant_max {self.quant_max:g}"
        return text + (f" {self.scale_format} scale" if self.rounds_scale else "")

    def fitted(self, codebook: Codebook, name: str) -> Codebook:
        """Return the codebook of a format with this scale's choice of `quant_max`.

        Args:
          codebook: of the format.
          name: of the format, for errors.

        Raises:
          ValueError: the format has no such choice, or no such value.
        """
        quant_max = 1.0 if self.source == "none" else self.quant_max
        if quant_max is None or (self.source == "none" and codebook.uniform):
            return codebook
        if not isinstance(codebook, ScaledCodebook):
            if quant_max == codebook.quant_max:
                return codebook
            raise ValueError(
                f"number format {name!r} maps the largest magnitude to {codebook.quant_max}: leave"
                " out quant_max"
            )
        if quant_max > codebook.limit:
            raise ValueError(
                f"quant_max {quant_max:g} lies above the largest value of number format {name!r},"
                f" {codebook.limit:g}"
            )
        return dataclasses.replace(codebook, quant_max=quant_max)


def rounded_scale(width: tf.Tensor, codebook: Codebook, scale_format: str) -> tf.Tensor:
    """Scale of ranges, rounded to a number format of scales.

    Args:
      width: float32 above 0, the largest magnitudes.
      codebook: of the format of the values.
      scale_format: one of `SCALE_FORMATS`.

    Returns:
      float32 like `width`, above 0.
    """
    if scale_format == "e8m0":  # the exponents of the extremes, not that of their ratio
        return _power_of_two_below(width) * 2.0 ** -math.floor(math.log2(codebook.quant_max))
    return rounded_to(scale_of(width, codebook), scale_format)


def rounded_to(scale: tf.Tensor, scale_format: str) -> tf.Tensor:
    """Round scales, normal float32 numbers above 0, to one of `SCALE_FORMATS`."""
    if scale_format == "float32":
        return scale
    below = _power_of_two_below(scale)
    if scale_format == "e8m0":
        return below
    if scale_format == "power_of_two":
        return tf.where(below < scale, 2.0 * below, below)
    if scale_format == "nearest_power_of_two":  # no float32 number is the square root of two
        return tf.where(scale > below * np.float32(math.sqrt(2.0)), 2.0 * below, below)
    bits, smallest, largest = _E5M3
    step = tf.maximum(below, 2.0**smallest) * 2.0**-bits
    return tf.clip_by_value(tf.round(scale / step) * step, 2.0 ** (smallest - bits), largest)


def with_rounded_scale(width: tf.Tensor, codebook: Codebook, scale_format: str) -> tf.Tensor:
    """Largest magnitudes moved so that their scale is one of `scale_format`; of one shape."""
    if scale_format == "float32":
        return width
    safe = tf.maximum(width, SMALLEST_AMAX)
    return rounded_scale(safe, codebook, scale_format) * float(codebook.quant_max)


def _power_of_two_below(x: tf.Tensor) -> tf.Tensor:
    """Largest power of two that is not above `x`, of normal float32 numbers above 0."""
    return tf.bitcast(tf.bitwise.bitwise_and(tf.bitcast(x, tf.int32), 0x7F800000), tf.float32)


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
