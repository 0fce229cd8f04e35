"""Formats of up to 8 bits that are given by their values and decision boundaries.

    y = level nearest to (x / scale), by the boundaries of the format, * scale

A float32 number is rounded once, directly. Two kernels compute the same bits: a binary search over
the boundaries with plain operations, and one compiled by XLA. The latter looks the value up by the
upper 16 bits of the number, the lowest of which is set where any of the lower 16 bits is (round to
odd). That is exact where boundaries have at most 7 significant bits; elsewhere the number is
compared with the boundary of its pattern, or with each of the few boundaries in turn.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from calib.codebook import ScaledCodebook
from tfquant.formats.contract import Kind
from tfquant.kernels import CompiledKernel
from tfquant.scale import SMALLEST_AMAX, Scale, scale_of

_PATTERNS = 2**16  # of bfloat16
_MOST_COMPARED = 16  # levels up to which comparing is faster than two tables


@dataclasses.dataclass(frozen=True)
class FixedLevels:
    """Signed format of fixed values.

    Attributes:
      name: as in recipes.
      bits: of a code.
      book: the values.
      codes: code of each value, in their order.
    """

    name: str
    bits: int
    book: ScaledCodebook
    codes: tuple[int, ...]

    @property
    def kind(self) -> Kind:
        return "codebook"

    def codebook(self, scale: Scale) -> ScaledCodebook:
        check_signed(self.name, scale)
        return self.book

    def has_gradient(self, amax: tf.Tensor) -> bool:
        return False

    def round(
        self, x: tf.Tensor, amax: tf.Tensor, codebook: ScaledCodebook, *, compiled: bool = True
    ) -> tf.Tensor:
        scale = scale_of(tf.maximum(amax, SMALLEST_AMAX), codebook)
        return _kernel(self)(x, scale) if compiled else searched(x, scale, codebook)

    def rounded(self, x: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        """Round `x` in units of `scale`, which broadcasts to it, by operations that are fast when
        XLA compiles them.
        """
        table = table_of(self.book)
        several = table is not None and table.threshold is not None
        if table is None or (several and self.book.num_codes <= _MOST_COMPARED):
            return compared(x, scale, self.book)
        return looked_up(x, scale, table)

    def encode(self, units: np.ndarray, codebook: ScaledCodebook) -> np.ndarray:
        places = np.searchsorted(np.asarray(codebook.thresholds, np.float32), units, side="right")
        return np.asarray(self.codes, np.int32)[places]

    def decode(self, codes: np.ndarray, codebook: ScaledCodebook) -> np.ndarray:
        """Codes of no value, such as that of posit's NaR, are NaN."""
        values = np.full(2**self.bits, np.nan, np.float32)
        values[list(self.codes)] = codebook.levels
        return values[codes]


def mirrored(
    magnitudes: Sequence[float],
    boundaries: Sequence[float],
    away: Sequence[bool],
    quant_max: float,
    name: str,
) -> ScaledCodebook:
    """Return a codebook of 0, magnitudes, and these with a minus sign.

    Args:
      magnitudes: above zero, ascending.
      boundaries: between each magnitude and what lies below it, 0 first; exact in float32.
      away: whether a number on a boundary is rounded away from zero.
      quant_max: what amax is mapped to.
      name: of the format.
    """
    positive, negative = [], []
    for boundary, far in zip(boundaries, away, strict=True):
        positive.append(boundary if far else above(boundary))
        negative.append(above(-boundary) if far else -boundary)
    return ScaledCodebook(
        (*(-value for value in reversed(magnitudes)), 0.0, *magnitudes),
        (*reversed(negative), *positive),
        quant_max,
        name,
    )


def above(number: float) -> float:
    """Next number in float32."""
    return float(np.nextafter(np.float32(number), np.float32(np.inf)))


def check_signed(name: str, scale: Scale) -> None:
    """Refuse a scale that a signed format without zero point does not support.

    Raises:
      ValueError: names the format and the field.
    """
    for field in ("symmetric", "narrow_range"):
        if getattr(scale, field) is not True:
            raise ValueError(
                f"number format {name!r} is for {field}: true, it mirrors itself at zero"
            )
    if scale.unsigned is True:
        raise ValueError(f"number format {name!r} has a sign: set unsigned: false")


def searched(x: tf.Tensor, scale: tf.Tensor, codebook: ScaledCodebook) -> tf.Tensor:
    """Round `x` in units of `scale`, which broadcasts to it, with plain operations."""
    units = x / scale
    places = tf.searchsorted(
        tf.constant(codebook.thresholds), tf.reshape(units, [-1]), side="right"
    )
    rounded = tf.reshape(tf.gather(tf.constant(codebook.levels), places), tf.shape(units))
    return tf.where(tf.math.is_nan(units), units, rounded) * scale


class Table(NamedTuple):
    """Values by bit pattern of bfloat16, in the sense of rounding to odd: an even pattern is one
    number, an odd one stands for all between its neighbours.

    Attributes:
      low, high: float32 [65536], the values of the smallest and the largest of these numbers.
      threshold: float32 [65536], from where on the value is `high`; None where they are equal
        everywhere.
    """

    low: np.ndarray
    high: np.ndarray
    threshold: np.ndarray | None


@functools.cache
def table_of(codebook: ScaledCodebook) -> Table | None:
    """Return the table of a codebook; None where the numbers of one pattern have three values."""
    thresholds = np.asarray(codebook.thresholds, np.float32)
    levels = np.asarray(codebook.levels, np.float32)
    numbers = (np.arange(_PATTERNS, dtype=np.uint32) << 16).view(np.float32)
    ends = []
    for shift in (-0xFFFF, 0xFFFF):  # odd patterns: next to the neighbours towards and from zero
        bits = numbers.view(np.uint32).astype(np.int64)
        bits[1::2] += shift
        ends.append(bits.astype(np.uint32).view(np.float32))
    lowest, highest = np.minimum(*ends), np.maximum(*ends)
    low, high = (np.searchsorted(thresholds, end, side="right") for end in (lowest, highest))
    nan = np.isnan(numbers)
    low[nan] = high[nan] = 0
    if (high - low > 1).any():
        return None
    between = np.append(thresholds, np.inf).astype(np.float32)[low]
    smallest, largest = (np.where(nan, np.float32(np.nan), levels[place]) for place in (low, high))
    threshold = None if (low == high).all() else np.where(low < high, between, np.inf)
    return Table(smallest, largest, threshold)


def looked_up(x: tf.Tensor, scale: tf.Tensor, table: Table) -> tf.Tensor:
    """Round `x` in units of `scale` by a table."""
    units = x / scale
    bits = tf.bitcast(units, tf.uint32)
    odd = tf.cast(tf.bitwise.bitwise_and(bits, 0xFFFF) != 0, tf.uint32)
    index = tf.cast(tf.bitwise.bitwise_or(tf.bitwise.right_shift(bits, 16), odd), tf.int32)
    low = tf.gather(tf.constant(table.low), index)
    if table.threshold is None:
        return low * scale
    high, threshold = (tf.gather(tf.constant(t), index) for t in (table.high, table.threshold))
    return tf.where(units >= threshold, high, low) * scale


def compared(x: tf.Tensor, scale: tf.Tensor, codebook: ScaledCodebook) -> tf.Tensor:
    """Round `x` in units of `scale` by comparing with each boundary."""
    units = x / scale
    rounded = tf.fill(tf.shape(units), codebook.levels[0])
    for threshold, level in zip(codebook.thresholds, codebook.levels[1:], strict=True):
        rounded = tf.where(units >= threshold, level, rounded)
    return tf.where(tf.math.is_nan(units), units, rounded) * scale


@functools.cache
def _kernel(format: FixedLevels) -> CompiledKernel:
    def plain(x: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        return searched(x, scale, format.book)

    return CompiledKernel(plain, format.rounded)
