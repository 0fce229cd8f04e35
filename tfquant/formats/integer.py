"""Uniform integers of 2 to 16 bits: `int2` ... `int16`.

For codes up to B and a range amax, in float32:

    scale = B / amax,  step = amax / B
    y = round_half_even(clip(x, qmin * step, amax) * scale) * step

Per tensor, one native kernel (QuantizeAndDequantizeV4) does it in one pass over memory. With ranges
along axes the same kernel rounds values that were divided by their steps: three passes, faster than
plain operations and than the native kernel for one axis (QuantizeAndDequantizeV3), which computes
other numbers.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import tensorflow as tf

from calib.codebook import Codebook, UniformCodebook
from tfquant.formats.contract import Kind
from tfquant.scale import SMALLEST_AMAX, Scale

MIN_BITS, MAX_BITS = 2, 16
KNOWN = f"int{MIN_BITS} ... int{MAX_BITS}"


@dataclasses.dataclass(frozen=True)
class IntegerFormat:
    """Integers of `bits` bits; the scale determines sign and zero point."""

    bits: int

    @property
    def name(self) -> str:
        return f"int{self.bits}"

    @property
    def kind(self) -> Kind:
        return "uniform"

    def codebook(self, scale: Scale) -> UniformCodebook:
        """Codes -B..B (narrow), -B-1..B (full) or 0..2B+1, B = 2**(bits-1) - 1."""
        high = 2 ** (self.bits - 1) - 1
        if scale.unsigned is True or not scale.symmetric:
            return UniformCodebook(0, 2 * high + 1, scale.symmetric)
        return UniformCodebook(-high if scale.narrow_range else -high - 1, high)

    def has_gradient(self, amax: tf.Tensor) -> bool:
        return amax.shape.rank == 0

    def round(
        self, x: tf.Tensor, amax: tf.Tensor, codebook: Codebook, *, compiled: bool = True
    ) -> tf.Tensor:
        if amax.shape.rank == 0:
            return _native(x, amax, codebook)
        largest, amax = float(codebook.quant_max), tf.maximum(amax, SMALLEST_AMAX)
        return _native(x * (largest / amax), tf.constant(largest), codebook) * (amax / largest)

    def rounded(self, x: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        largest = float(2 ** (self.bits - 1) - 1)
        units = tf.round(x / scale)
        # Not clip_by_value, which may turn NaN into a number.
        return tf.where(tf.abs(units) > largest, tf.sign(units) * largest, units) * scale

    def encode(self, units: np.ndarray, codebook: Codebook) -> np.ndarray:
        return np.clip(np.rint(units), *codebook.extremes).astype(np.int32)

    def decode(self, codes: np.ndarray, codebook: Codebook) -> np.ndarray:
        return codes.astype(np.float32)


def parse(name: str) -> IntegerFormat | None:
    """Return the format called `name`; None if it is of another family.

    Raises:
      ValueError: there are no integers of so many bits.
    """
    match = re.fullmatch(r"int([0-9]{1,3})", name)
    if match is None:
        return None
    bits = int(match.group(1))
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"number format {name!r}: bits must lie in {MIN_BITS} ... {MAX_BITS}")
    return IntegerFormat(bits)


def _native(x: tf.Tensor, amax: tf.Tensor, codebook: Codebook) -> tf.Tensor:
    amax = tf.maximum(amax, SMALLEST_AMAX)
    smallest, largest = codebook.extremes
    signed = smallest < 0
    return tf.raw_ops.QuantizeAndDequantizeV4(
        input=x,
        input_min=-amax if signed else tf.zeros_like(amax),
        input_max=amax,
        signed_input=signed,
        num_bits=(codebook.num_codes - 1).bit_length(),
        range_given=True,
        round_mode="HALF_TO_EVEN",
        narrow_range=smallest == -largest,
    )
