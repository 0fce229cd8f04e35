"""Posits of up to 8 bits: `posit<n>_<es>`, such as `posit8_1`.

A positive code is a regime (a run of equal bits that the opposite one ends), up to es bits of
exponent e and a fraction f: useed**k * 2**e * (1 + f) with useed = 2**(2**es), where k is the
length of the run less one for ones, and minus the length for zeros. Negative codes are the two's
complement; 100...0 is no number and is never written.

Numbers are rounded on the bit string, half to even: where exponent bits are cut off, the boundary
between two values is their geometric mean. Beyond the largest value they saturate. Other than in
the standard, small numbers become zero, below 2**floor(2**(es-1) - (n-1) * 2**es).

amax is mapped to useed**(n-5), 64 for `posit8_1`: beyond it two bits or fewer are left for exponent
and fraction. The largest value, 4096 for `posit8_1`, lies far above.

A float32 number has the bits of exponent and fraction one behind the other, as a posit has, so that
compiled by XLA it is rounded by integer operations: the regime says how many of its bits are kept.

Sources: Gustafson and Yonemoto 2017, "Beating Floating Point at its Own Game"; Yu et al. 2024,
"8-bit Transformer Inference and Fine-tuning for Edge Accelerators".
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import tensorflow as tf

from tfquant.formats import float32_bits
from tfquant.formats.fixed_levels import FixedLevels, mirrored

_BITS, _EXPONENT_BITS = range(3, 9), range(4)
KNOWN = "posit3_0 ... posit8_3"


@dataclasses.dataclass(frozen=True)
class PositFormat(FixedLevels):
    """Posits.

    Attributes:
      exponent_bits: es of the name.
    """

    exponent_bits: int = 0

    def rounded(self, x: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        """Round `x` in units of `scale`, which broadcasts to it, by operations on bits."""
        units, levels = x / scale, self.book.levels
        magnitude = float32_bits.magnitudes(units)
        smallest = float32_bits.pattern(min(level for level in levels if level > 0))
        text = tf.maximum(magnitude, smallest)
        text = tf.minimum(text, float32_bits.pattern(levels[-1]))
        # With a bias of 128, a multiple of 2**es, the lowest bits of the exponent are those of the
        # posit.
        text += 1 << float32_bits.MANTISSA_BITS
        most = float32_bits.MANTISSA_BITS + self.exponent_bits
        regime = tf.bitwise.right_shift(text, most) - (128 >> self.exponent_bits)
        zeros = tf.bitwise.right_shift(regime, 31)  # -1 for a run of zeros, 0 for one of ones
        length = tf.bitwise.bitwise_xor(regime, zeros) + 2
        dropped = tf.minimum(most + 1 - self.bits + length, most)
        unit = tf.bitwise.left_shift(1, dropped)
        last = tf.minimum(tf.bitwise.bitwise_and(text, unit), 1)
        # Nothing but the regime is left: its last bit ends a run of ones, or of zeros.
        last = tf.where(dropped < most, last, -zeros)
        text += tf.bitwise.right_shift(unit, 1) - 1 + last
        text = tf.bitwise.bitwise_and(text, -unit) - (1 << float32_bits.MANTISSA_BITS)
        zero_below = float32_bits.pattern(self.book.thresholds[levels.index(0.0)])
        text = tf.where(magnitude < zero_below, 0, text)
        return float32_bits.with_sign_of(units, text) * scale


def parse(name: str) -> PositFormat | None:
    """Return the format called `name`; None if it is of another family.

    Raises:
      ValueError: there are no posits of so many bits.
    """
    match = re.fullmatch(r"posit([0-9]{1,2})_([0-9]{1,2})", name)
    if match is None:
        return None
    bits, exponent_bits = map(int, match.groups())
    if bits not in _BITS or exponent_bits not in _EXPONENT_BITS:
        raise ValueError(
            f"number format {name!r}: posits have {_BITS[0]} to {_BITS[-1]} bits, of which"
            f" {_EXPONENT_BITS[0]} to {_EXPONENT_BITS[-1]} are for the exponent"
        )
    return posit(bits, exponent_bits)


@functools.cache
def posit(bits: int, exponent_bits: int) -> PositFormat:
    """Return the posit format of `bits` bits with up to `exponent_bits` of exponent."""
    codes = range(1, 2 ** (bits - 1))
    positive = [value_of(code, bits, exponent_bits) for code in codes]
    smallest = 2.0 ** math.floor(2 ** (exponent_bits - 1) - (bits - 1) * 2**exponent_bits)
    # Half-way between two codes lies the code of one bit more; the even one of the two is taken.
    middles = [value_of(2 * code + 1, bits + 1, exponent_bits) for code in codes[:-1]]
    away = [True, *(code % 2 == 1 for code in codes[:-1])]
    largest = 2.0 ** (max(bits - 5, 0) * 2**exponent_bits)
    name = f"posit{bits}_{exponent_bits}"
    book = mirrored(positive, [smallest, *middles], away, largest, name)
    half = 2 ** (bits - 1)
    codes_of_levels = (*range(half + 1, 2 * half), *range(half))
    return PositFormat(name, bits, book, codes_of_levels, exponent_bits)


def value_of(code: int, bits: int, exponent_bits: int) -> float:
    """Value of a positive code."""
    digits = f"{code:0{bits}b}"[1:]
    run = len(digits) - len(digits.lstrip(digits[0]))
    regime = run - 1 if digits[0] == "1" else -run
    exponent = digits[run + 1 :][:exponent_bits].ljust(exponent_bits, "0")
    fraction = digits[run + 1 + exponent_bits :]
    power = regime * 2**exponent_bits + int(exponent or "0", 2)
    return 2.0**power * (1 + int(fraction or "0", 2) / 2 ** len(fraction))
