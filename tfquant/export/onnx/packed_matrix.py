"""Matrices of weights in the layout of ONNX Runtime's `com.microsoft.MatMulNBits`.

    W[k, n] = scale[n, k // b] * (code[n, k] - zero[n, k // b])

Codes have 2, 4 or 8 bits, which the kernels of ONNX Runtime 1.32 for processors take; b is a power
of two from 16 on. In the file codes are uint8 [N, ceil(K / b), b * bits / 8], the lowest bits
first; scales are float32 [N, ceil(K / b)]; zero points are packed like codes along their last axis
and left out where all are 2**(bits - 1). Binary and ternary weights are codes of 2 bits: -1, 0 and
1 in units of the scale.

Source: docs/ContribOperators.md of ONNX Runtime.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tfquant.bitpacking import pack
from tfquant.formats import fitted
from tfquant.layout import aligned
from tfquant.quantized_array import FittedArray, QuantizedArray

BITS = (2, 4, 8)
SMALLEST_BLOCK = 16
# Of weights that leave it open: the largest one that the kernels of integer activations have for
# every number of bits. A scale takes 0.25 bits per weight then.
LARGEST_FREE_BLOCK = 128


@dataclasses.dataclass(frozen=True, eq=False)
class PackedMatrix:
    """Operands of the operation.

    Attributes:
      bits: of a code.
      block: number of weights along K that share a scale.
      codes: uint8 [N, ceil(K / block), block * bits / 8].
      scales: float32 [N, ceil(K / block)].
      zeros: uint8 [N, ceil(ceil(K / block) * bits / 8)]; None where all are 2**(bits - 1).
    """

    bits: int
    block: int
    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
    """Integer levels of each weight, arrays of one shape.

    Attributes:
      codes: from 0 to 2**bits - 1.
      zeros: zero points, like codes.
      scale: float32.
      bits: one of `BITS`.
    """

    codes: np.ndarray
    zeros: np.ndarray
    scale: np.ndarray
    bits: int

    @classmethod
    def of(cls, array: QuantizedArray | FittedArray) -> Levels:
        """Levels of codes of integers, or of the two or three values -a, 0 and a.

        Raises:
          ValueError: values are no multiples of one scale, or have more than 8 bits.
        """
        if isinstance(array, FittedArray):
            return cls._of_fitted(array)
        params, shape = array.params, array.codes.shape
        integers = params.integers
        if integers.num_codes > 2 ** BITS[-1]:
            raise ValueError(f"codes {integers} have more than {BITS[-1]} bits")
        bits = next(bits for bits in BITS if integers.num_codes <= 2**bits)
        half = 2 ** (bits - 1)
        # Without zero points in the file where all weights have the one that the kernel assumes.
        fits = integers.symmetric and -half <= integers.qmin and integers.qmax < half
        shift = half if fits else -integers.qmin
        blocks = params.blocks is not None  # which have no zero points
        zeros = np.int32(0) if blocks else aligned(params.zero, shape, params.axes)
        scale = np.broadcast_to(params.scale_for(shape), shape)
        return cls(array.codes + shift, np.broadcast_to(zeros + shift, shape), scale, bits)

    @classmethod
    def _of_fitted(cls, array: FittedArray) -> Levels:
        levels, shape = array.levels_along(), array.codes.shape
        scale, units = np.abs(levels).max(-1), np.sign(levels)
        if (np.abs(levels) != np.abs(units) * scale[..., np.newaxis]).any():
            raise ValueError(f"values of {array.format} are no multiples of one scale")
        codes = fitted.decode(array.codes, units).astype(np.int32) + 2
        return cls(codes, np.full(shape, 2, np.int32), np.broadcast_to(scale, shape), 2)

    def arranged(self, positions: np.ndarray) -> Levels:
        """Levels at flat positions of these."""
        codes, zeros, scale = (
            np.ravel(values)[positions] for values in (self.codes, self.zeros, self.scale)
        )
        return Levels(codes, zeros, scale, self.bits)

    def largest_block(self, limit: int | None = None) -> int | None:
        """Largest block within which scales and zero points of a matrix [K, N] are equal; None if
        there is none.

        Args:
          limit: a power of two; blocks of more than `LARGEST_FREE_BLOCK` are never chosen.
        """
        block, inputs = min(limit or LARGEST_FREE_BLOCK, LARGEST_FREE_BLOCK), len(self.codes)
        while block > SMALLEST_BLOCK and block // 2 >= inputs:
            block //= 2
        while block >= SMALLEST_BLOCK:
            if self.fit_blocks(block):
                return block
            block //= 2
        return None

    def fit_blocks(self, block: int) -> bool:
        """Whether scales and zero points of a matrix [K, N] are equal within blocks along K."""
        first = np.arange(len(self.codes)) // block * block
        return all(np.array_equal(a, a[first]) for a in (self.scale, self.zeros))

    def packed(self, block: int) -> PackedMatrix:
        """Operands of the operation for a matrix [K, N] whose scales fit blocks along K."""
        half = 2 ** (self.bits - 1)
        missing = -len(self.codes) % block
        padded = np.pad(self.codes.T, ((0, 0), (0, missing)), constant_values=half)
        codes = _pack(padded.reshape(len(padded), -1, block), self.bits)
        scales, zeros = self.scale[::block].T, self.zeros[::block].T
        packed_zeros = None if (zeros == half).all() else _pack(zeros, self.bits)
        return PackedMatrix(
            self.bits, block, codes, np.ascontiguousarray(scales, np.float32), packed_zeros
        )


def _pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes along the last axis into bytes, the lowest bits first; the last byte is filled
    with 0.
    """
    missing = -codes.shape[-1] % (8 // bits)
    codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, missing)])
    return pack(codes, bits).reshape(*codes.shape[:-1], -1)
