"""Floating-point formats of up to 8 bits, saturating: `e4m3`, `e5m2`, `e3m2`.

`eXmY` has a sign, X bits of exponent with the bias 2**(X-1) - 1, and Y bits of mantissa; numbers
below the smallest normal one are subnormal. Values round half to even and saturate at the largest
finite one. Codes beyond it stand for infinities and NaN, which are never written.

    y = round_to_nearest(x / scale) * scale,  scale = amax * (1 / limit)

Sources: Micikevicius et al. 2022, arXiv:2209.05433; Open Compute Project, OFP8 and Microscaling
Formats, 2023.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from calib.codebook import ScaledCodebook
from tfquant.formats.contract import Kind
from tfquant.kernels import CompiledKernel
from tfquant.scale import SMALLEST_AMAX, Scale, scale_of

_MANTISSA, _BIAS, _EXPONENT_MASK = 23, 127, 0x7F800000  # of float32


@dataclasses.dataclass(frozen=True)
class FloatFormat:
    """Signed floating-point format.

    Attributes:
      exponent_bits, mantissa_bits: X and Y of the name.
      limit: largest finite value.
    """

    exponent_bits: int
    mantissa_bits: int
    limit: float

    @property
    def name(self) -> str:
        return f"e{self.exponent_bits}m{self.mantissa_bits}"

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
        for field, wanted in (("symmetric", True), ("narrow_range", True)):
            if getattr(scale, field) is not wanted:
                raise ValueError(
                    f"number format {self.name!r} is for {field}: true, it mirrors itself at zero"
                )
        if scale.unsigned is True:
            raise ValueError(f"number format {self.name!r} has a sign: set unsigned: false")
        return _codebook(self)

    def has_gradient(self, amax: tf.Tensor) -> bool:
        return False

    def round(
        self, x: tf.Tensor, amax: tf.Tensor, codebook: ScaledCodebook, *, compiled: bool = True
    ) -> tf.Tensor:
        scale = scale_of(tf.maximum(amax, SMALLEST_AMAX), codebook)
        return _kernel(self)(x, scale) if compiled else self.scaled(x, scale)

    def scaled(self, x: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        """Round `x` in units of `scale`, which broadcasts to it, with plain operations."""
        units = x / scale
        # Not clip_by_value, which may turn NaN into a number.
        units = tf.where(tf.abs(units) > self.limit, tf.sign(units) * self.limit, units)
        # The spacing of values around a number follows from its exponent; powers of two scale
        # exactly.
        exponent = tf.bitwise.bitwise_and(tf.bitcast(units, tf.int32), _EXPONENT_MASK)
        exponent = tf.maximum(exponent, (self.smallest_exponent + _BIAS) << _MANTISSA)
        spacing = exponent - (self.mantissa_bits << _MANTISSA)
        inverse = (2 * _BIAS << _MANTISSA) - spacing
        return (
            tf.round(units * tf.bitcast(inverse, tf.float32))
            * tf.bitcast(spacing, tf.float32)
            * scale
        )

    def encode(self, units: np.ndarray, codebook: ScaledCodebook) -> np.ndarray:
        rounded = self.scaled(tf.constant(units, tf.float32), tf.constant(1.0)).numpy()
        codes = np.searchsorted(self.magnitudes, np.abs(rounded))
        return (codes + (np.signbit(rounded) << (self.bits - 1))).astype(np.int32)

    def decode(self, codes: np.ndarray, codebook: ScaledCodebook) -> np.ndarray:
        half = 2 ** (self.bits - 1)
        beyond = np.full(half - self.magnitudes.size, np.nan, np.float32)
        magnitudes = np.concatenate([self.magnitudes, beyond])
        return np.concatenate([magnitudes, -magnitudes])[codes]


FORMATS = {
    format.name: format
    for format in (
        FloatFormat(4, 3, 448.0),  # no infinities
        FloatFormat(5, 2, 57344.0),
        FloatFormat(3, 2, 28.0),  # neither infinities nor NaN
    )
}
KNOWN = ", ".join(FORMATS)


def parse(name: str) -> FloatFormat | None:
    """Return the format called `name`; None if it is of another family."""
    return FORMATS.get(name)


@functools.cache
def _codebook(format: FloatFormat) -> ScaledCodebook:
    levels = np.concatenate([-format.magnitudes[:0:-1], format.magnitudes])
    return ScaledCodebook.nearest(tuple(levels.tolist()), name=format.name)


@functools.cache
def _kernel(format: FloatFormat) -> CompiledKernel:
    return CompiledKernel(format.scaled)
