"""Floating-point formats of up to 8 bits, saturating: `eXmY`, such as `e4m3`, `e5m2`, `e2m1`.

`eXmY` has a sign, X bits of exponent with the bias 2**(X-1) - 1, and Y bits of mantissa; numbers
below the smallest normal one are subnormal. Formats of up to 4 bits of exponent are those of the
Open Compute Project: the largest exponent holds numbers like the others, in `e4m3` all but one,
which is NaN. `eXmY_ieee` keeps it for infinities and NaN, as formats of 5 bits always do. Values
round half to even and saturate at the largest finite one; infinities and NaN are never written.

    y = round_to_nearest(x / scale) * scale,  scale = amax * (1 / limit)

Sources: Micikevicius et al. 2022, arXiv:2209.05433; Open Compute Project, OFP8 and Microscaling
Formats, 2023.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import numpy as np
import tensorflow as tf

from calib.codebook import ScaledCodebook
from tfquant.formats import float32_bits
from tfquant.formats.contract import Kind
from tfquant.formats.fixed_levels import check_signed, mirrored
from tfquant.kernels import CompiledKernel
from tfquant.scale import SMALLEST_AMAX, Scale, scale_of

_EXPONENT_BITS = range(1, 6)
_FULL_EXPONENT_BITS = 4  # up to here the largest exponent holds numbers


@dataclasses.dataclass(frozen=True)
class FloatFormat:
    """Signed floating-point format.

    Attributes:
      exponent_bits, mantissa_bits: X and Y of the name.
      ieee: whether the largest exponent is kept for infinities and NaN.
    """

    exponent_bits: int
    mantissa_bits: int
    ieee: bool = False

    @property
    def name(self) -> str:
        return f"e{self.exponent_bits}m{self.mantissa_bits}" + ("_ieee" if self.ieee else "")

    @property
    def limit(self) -> float:
        """Largest finite value."""
        exponent = 2 ** (self.exponent_bits - 1)
        if self.ieee or self.exponent_bits > _FULL_EXPONENT_BITS:
            exponent -= 1
        last = 1 + (self.name == "e4m3")  # the last code of e4m3 is NaN
        return 2.0**exponent * (2.0 - last * 2.0**-self.mantissa_bits)

    @property
    def kind(self) -> Kind:
        return "codebook"

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def smallest_exponent(self) -> int:
        """Smallest exponent of normal numbers, and of subnormal spacing times 2**mantissa_bits."""
        return 2 - 2 ** (self.exponent_bits - 1)

    @functools.cached_property
    def magnitudes(self) -> np.ndarray:
        """Non-negative values, ascending, indexed by code; float32."""
        codes = np.arange(2 ** (self.exponent_bits + self.mantissa_bits))
        exponent, fraction = codes >> self.mantissa_bits, codes % 2**self.mantissa_bits
        normal = exponent > 0
        significand = fraction + normal * 2**self.mantissa_bits
        power = np.maximum(exponent, 1) - 1 + self.smallest_exponent - self.mantissa_bits
        values = np.ldexp(significand.astype(np.float32), power)
        return values[values <= self.limit]

    def codebook(self, scale: Scale) -> ScaledCodebook:
        check_signed(self.name, scale)
        return _codebook(self)

    def has_gradient(self, amax: tf.Tensor) -> bool:
        return False

    def round(
        self, x: tf.Tensor, amax: tf.Tensor, codebook: ScaledCodebook, *, compiled: bool = True
    ) -> tf.Tensor:
        scale = scale_of(tf.maximum(amax, SMALLEST_AMAX), codebook)
        return _kernel(self)(x, scale) if compiled else self.rounded(x, scale)

    def rounded(self, x: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        """Round `x` in units of `scale`, which broadcasts to it, with plain operations."""
        units = x / scale
        # Patterns, as clipping numbers may turn NaN into one.
        saturated = tf.minimum(float32_bits.magnitudes(units), float32_bits.pattern(self.limit))
        # The spacing of values around a number follows from its exponent. 1.5 * 2**23 spacings are
        # so large that the sum is rounded to whole spacings, half to even.
        exponent = tf.bitwise.bitwise_and(saturated, float32_bits.EXPONENT)
        smallest = (self.smallest_exponent + float32_bits.BIAS) << float32_bits.MANTISSA_BITS
        power = (float32_bits.MANTISSA_BITS - self.mantissa_bits) << float32_bits.MANTISSA_BITS
        power += 1 << (float32_bits.MANTISSA_BITS - 1)
        large = tf.bitcast(tf.maximum(exponent, smallest) + power, tf.float32)
        rounded = (tf.bitcast(saturated, tf.float32) + large) - large
        return float32_bits.with_sign_of(units, tf.bitcast(rounded, tf.int32)) * scale

    def encode(self, units: np.ndarray, codebook: ScaledCodebook) -> np.ndarray:
        rounded = self.rounded(tf.constant(units, tf.float32), tf.constant(1.0)).numpy()
        codes = np.searchsorted(self.magnitudes, np.abs(rounded))
        return (codes + (np.signbit(rounded) << (self.bits - 1))).astype(np.int32)

    def decode(self, codes: np.ndarray, codebook: ScaledCodebook) -> np.ndarray:
        half = 2 ** (self.bits - 1)
        beyond = np.full(half - self.magnitudes.size, np.nan, np.float32)
        magnitudes = np.concatenate([self.magnitudes, beyond])
        return np.concatenate([magnitudes, -magnitudes])[codes]


KNOWN = "e1m1 ... e5m2 of up to 8 bits, e4m3_ieee"


def parse(name: str) -> FloatFormat | None:
    """Return the format called `name`; None if it is of another family.

    Raises:
      ValueError: there are no formats of so many bits.
    """
    match = re.fullmatch(r"e([0-9])m([0-9])(_ieee)?", name)
    if match is None:
        return None
    exponent_bits, mantissa_bits, ieee = int(match[1]), int(match[2]), match[3] is not None
    if exponent_bits not in _EXPONENT_BITS or not 3 <= 1 + exponent_bits + mantissa_bits <= 8:
        raise ValueError(
            f"number format {name!r}: floating-point formats have {_EXPONENT_BITS[0]} to"
            f" {_EXPONENT_BITS[-1]} bits of exponent, and 3 to 8 bits with sign and mantissa"
        )
    if ieee and not 1 < exponent_bits <= _FULL_EXPONENT_BITS:
        raise ValueError(
            f"number format {name!r}: _ieee is for 2 to {_FULL_EXPONENT_BITS} bits of exponent;"
            " with 5 bits the plain name means the same"
        )
    return FloatFormat(exponent_bits, mantissa_bits, ieee)


@functools.cache
def _codebook(format: FloatFormat) -> ScaledCodebook:
    positive = format.magnitudes[1:].astype(np.float64)
    middles = (np.append(0.0, positive[:-1]) + positive) / 2
    # Half to even of the significand; without mantissa bits, 1.5 times a power is next to 2.
    away = [place % 2 == 1 if format.mantissa_bits else place > 0 for place in range(positive.size)]
    return mirrored(positive.tolist(), middles.tolist(), away, format.limit, format.name)


@functools.cache
def _kernel(format: FloatFormat) -> CompiledKernel:
    return CompiledKernel(format.rounded)
