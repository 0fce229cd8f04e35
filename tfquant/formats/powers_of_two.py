"""Powers of two of 2 to 7 bits: `p2_<n>`, 0 and both signs of 2**(2-2**(n-1)) ... 1.

Numbers are rounded to the nearest value, so that a power is taken from three quarters of it on
(0.75 * 2**j <= |x| < 1.5 * 2**j); below half of the smallest power they become zero.

Source: Zhou et al. 2017, "Incremental Network Quantization", arXiv:1702.03044, equations 2 to 4.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import tensorflow as tf

from tfquant.formats import float32_bits
from tfquant.formats.fixed_levels import FixedLevels, mirrored

_BITS = range(2, 8)
KNOWN = "p2_2 ... p2_7"


@dataclasses.dataclass(frozen=True)
class PowersOfTwo(FixedLevels):
    """Powers of two with a sign, and zero."""

    def rounded(self, x: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        """Round `x` in units of `scale`, which broadcasts to it, by operations on bits."""
        units, levels = x / scale, self.book.levels
        magnitude = float32_bits.magnitudes(units)
        # From one and a half times a power on, the next one is nearer.
        half = 1 << (float32_bits.MANTISSA_BITS - 1)
        power = tf.bitwise.bitwise_and(magnitude + half, float32_bits.EXPONENT)
        smallest = float32_bits.pattern(min(level for level in levels if level > 0))
        power = tf.minimum(tf.maximum(power, smallest), float32_bits.pattern(levels[-1]))
        zero_below = float32_bits.pattern(self.book.thresholds[levels.index(0.0)])
        power = tf.where(magnitude < zero_below, 0, power)
        return float32_bits.with_sign_of(units, power) * scale


def parse(name: str) -> PowersOfTwo | None:
    """Return the format called `name`; None if it is of another family.

    Raises:
      ValueError: there are no powers of two of so many bits.
    """
    match = re.fullmatch(r"p2_([0-9]{1,2})", name)
    if match is None:
        return None
    bits = int(match[1])
    if bits not in _BITS:
        raise ValueError(
            f"number format {name!r}: powers of two have {_BITS[0]} to {_BITS[-1]} bits"
        )
    return powers_of_two(bits)


@functools.cache
def powers_of_two(bits: int) -> PowersOfTwo:
    """Return the format of 2**bits - 1 values."""
    count = 2 ** (bits - 1) - 1
    magnitudes = [2.0 ** (power + 1 - count) for power in range(count)]
    boundaries = [magnitudes[0] / 2, *(0.75 * magnitude for magnitude in magnitudes[1:])]
    name, half = f"p2_{bits}", 2 ** (bits - 1)
    book = mirrored(magnitudes, boundaries, [True] * count, 1.0, name)
    return PowersOfTwo(name, bits, book, (*range(2 * half - 1, half, -1), *range(half)))
