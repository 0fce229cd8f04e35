"""Formats of kind `fitted`: rounding and codes by the levels of each group of a tensor.

    code = number of thresholds of the group that are not above x,  y = values[code]

A format gives the levels, see `tfquant.formats.contract.FittedFormat`; nothing here depends on
which one it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf

from calib.codebook import Range
from tfquant.formats.contract import Levels
from tfquant.scale import SMALLEST_AMAX, Scale, rounded_to


@dataclasses.dataclass(frozen=True)
class FittedCodebook:
    """Codes of a format whose values depend on the tensor; asking for a value is an error.

    Attributes:
      name: of the format.
      num_codes: number of values.
      unsigned: whether none of them is negative.
    """

    name: str
    num_codes: int
    unsigned: bool = False

    symmetric = True
    uniform = False

    def _refuse(self) -> NoReturn:
        raise TypeError(f"{self.name} has no values in units of a scale, they follow the tensor")

    @property
    def quant_max(self) -> float:
        self._refuse()

    @property
    def extremes(self) -> tuple[float, float]:
        self._refuse()

    @property
    def limit(self) -> float:
        self._refuse()

    def symmetric_range(self, amax: Any) -> Range:
        self._refuse()

    def quantize(self, x: Any, lower: Any, upper: Any) -> np.ndarray:
        self._refuse()

    def values(self, lower: Any, upper: Any) -> np.ndarray:
        self._refuse()

    def boundaries(self, lower: Any, upper: Any) -> np.ndarray:
        self._refuse()

    def to_dict(self) -> dict:
        self._refuse()

    def __str__(self) -> str:
        return self.name


def check_scale(name: str, scale: Scale) -> None:
    """Refuse a scale that no fitted format supports.

    Args:
      name: of the format.
      scale: of the spec.

    Raises:
      ValueError: names the format and the field.
    """
    for field in ("symmetric", "narrow_range"):
        if getattr(scale, field) is not True:
            raise ValueError(f"number format {name!r} has no zero point: set {field}: true")
    if scale.quant_max is not None:
        raise ValueError(f"number format {name!r} is fitted to the tensor: leave out quant_max")
    if scale.source == "delayed":
        raise ValueError(
            f"number format {name!r} is fitted to the tensor at hand, not to earlier ones: set"
            " source: dynamic"
        )


def mean_magnitude(
    x: tf.Tensor, axes: Sequence[int], counted: tf.Tensor | None = None
) -> tf.Tensor:
    """Mean of |x| over axes, which are kept; 0 where nothing is counted.

    The mean distance from the largest magnitude is taken off that: magnitudes that are all equal
    have exactly themselves as mean, so that fitting a rounded tensor again changes no bit of it.

    Args:
      x: float32.
      axes: of `x`.
      counted: boolean, broadcasts to `x`: elements that count; None counts all.
    """
    magnitudes = tf.abs(x)
    if counted is None:
        largest = tf.reduce_max(magnitudes, axes, keepdims=True)
        return largest - tf.reduce_mean(largest - magnitudes, axes, keepdims=True)
    largest = tf.reduce_max(tf.where(counted, magnitudes, 0.0), axes, keepdims=True)
    missing = tf.reduce_sum(tf.where(counted, largest - magnitudes, 0.0), axes, keepdims=True)
    ones = tf.ones_like(x) * tf.cast(counted, x.dtype)
    count = tf.reduce_sum(ones, axes, keepdims=True)
    return largest - missing / tf.maximum(count, 1.0)


def scaled_levels(
    amax: tf.Tensor, units: Sequence[float], thresholds: Sequence[tf.Tensor], scale: Scale
) -> Levels:
    """Levels that are multiples of one scale per group.

    Args:
      amax: float32, the scale of each group, at least 0; rounded as `scale.scale_format` says.
      units: the values in units of the scale, ascending.
      thresholds: one tensor like `amax` between each two values, ascending.
      scale: of the spec.

    Returns:
      The levels, NaN where `amax` or the first threshold is not finite.
    """
    rounded_amax = rounded_to(tf.maximum(amax, SMALLEST_AMAX), scale.scale_format)
    amax = tf.where(amax > 0.0, rounded_amax, amax)
    # A mean that is NaN or infinite shows in the scale, or in the first threshold.
    amax = tf.where(tf.math.is_finite(amax + thresholds[0]), amax, float("nan"))
    values = tf.expand_dims(amax, -1) * tf.constant(units, tf.float32)
    return Levels(values, tf.stack(list(thresholds), -1))


def rounded(x: tf.Tensor, levels: Levels) -> tf.Tensor:
    """Round float32 values to the levels of their group, without a gradient; NaN stays NaN."""
    values: Any = levels.values
    thresholds: Any = levels.thresholds
    y = tf.broadcast_to(values[..., 0], tf.shape(x))
    for index in range(thresholds.shape[-1]):
        y = tf.where(x >= thresholds[..., index], values[..., index + 1], y)
    return tf.where(tf.math.is_nan(x), x, y)


def encode(x: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Encode float32 values as int32 codes; `thresholds` as in `Levels`."""
    return (x[..., np.newaxis] >= thresholds).sum(-1, dtype=np.int32)


def decode(codes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Decode codes of an array to float32; `values` as in `Levels`."""
    table = np.broadcast_to(values, (*codes.shape, values.shape[-1]))
    return np.take_along_axis(table, codes[..., np.newaxis].astype(np.int64), -1)[..., 0]
