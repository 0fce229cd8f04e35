"""Levels of incremental quantization: `inq_<n>`, powers of two, and `fixed_<n>`, a uniform grid.

`inq_<n>`, n = 2 ... 8: 0 and both signs of the 2**(n-2) powers 1, 1/2, 1/4, ... in units of the
scale, which is itself a power of two (`largest_power`). One bit of n counts for zero, so that there
are fewer powers than in `p2_<n>`. Rounding as there: a power is taken from three quarters to one
and a half of it, and numbers beyond keep the largest, where the source makes them zero.

`fixed_<n>`, n = 2 ... 8: multiples of 2**(2-n) from -1 to 1, half-way ones rounded up; the grid
that the code of `INQ-pytorch` computes for its linear mode, whatever the weights are.

Source: Zhou et al. 2017, "Incremental Network Quantization", arXiv:1702.03044, equations 1 to 4.
"""

from __future__ import annotations

import functools
import re

import numpy as np

from calib.codebook import ScaledCodebook
from tfquant.formats.fixed_levels import FixedLevels, mirrored
from tfquant.formats.powers_of_two import PowersOfTwo

_BITS = range(2, 9)
KNOWN = "inq_2 ... inq_8, fixed_2 ... fixed_8"


def parse(name: str) -> FixedLevels | None:
    """Return the format called `name`; None if it is of another family.

    Raises:
      ValueError: there is none of so many bits.
    """
    match = re.fullmatch(r"(inq|fixed)_([0-9]{1,2})", name)
    if match is None:
        return None
    bits = int(match[2])
    if bits not in _BITS:
        raise ValueError(
            f"number format {name!r}: {match[1]} levels have {_BITS[0]} to {_BITS[-1]} bits"
        )
    return incremental_powers(bits) if match[1] == "inq" else fixed_grid(bits)


@functools.cache
def incremental_powers(bits: int) -> PowersOfTwo:
    """Return the format of 0 and 2**(bits - 2) powers of two with a sign."""
    count, half = 2 ** (bits - 2), 2 ** (bits - 1)
    magnitudes = [2.0 ** (power + 1 - count) for power in range(count)]
    boundaries = [magnitudes[0] / 2, *(0.75 * magnitude for magnitude in magnitudes[1:])]
    name = f"inq_{bits}"
    book = mirrored(magnitudes, boundaries, [True] * count, 1.0, name)
    return PowersOfTwo(name, bits, book, (*range(half + count, half, -1), *range(count + 1)))


@functools.cache
def fixed_grid(bits: int) -> FixedLevels:
    """Return the format of multiples of 2**(2 - bits) from -1 to 1."""
    step, largest = 2.0 ** (2 - bits), 2 ** (bits - 2)
    numbers = range(-largest, largest + 1)
    book = ScaledCodebook(
        tuple(number * step for number in numbers),
        tuple((number - 0.5) * step for number in numbers[1:]),
        1.0,
        f"fixed_{bits}",
    )
    codes = tuple(number % 2**bits for number in numbers)  # two's complement
    return FixedLevels(f"fixed_{bits}", bits, book, codes)


def largest_power(amax: np.ndarray) -> np.ndarray:
    """Largest level of powers of two: 2**floor(log2(4 / 3 * amax)), 0 for 0.

    Args:
      amax: float32, largest magnitudes of initial weights.

    Returns:
      float32 of its shape.
    """
    mantissa, exponent = np.frexp(np.asarray(amax, np.float32))  # amax = mantissa * 2**exponent
    power = np.ldexp(np.float32(1.0), exponent - (mantissa < 0.75)).astype(np.float32)
    return np.where(mantissa == 0, np.float32(0.0), power)
