"""NormalFloat: `nf<k>`, and `nf<k>_<b>` with values rounded to integers of b bits.

The values are quantiles of the normal distribution, of both signs apart so that 0 is one of them,
scaled to a largest value of 1; with `_<b>`, to 2**(b-1) - 1, and rounded half to even. Numbers are
rounded to the nearest value, ties towards -infinity.

Sources: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv:2305.14314;
the offset is that of bitsandbytes.
"""

from __future__ import annotations

import functools
import re

import numpy as np

from calib.codebook import ScaledCodebook
from tfquant.formats.fixed_levels import FixedLevels, above

_BITS = range(2, 9)
_OFFSET = 0.9677083  # probability of the largest value
KNOWN = "nf2 ... nf8, nf4_6"


def parse(name: str) -> FixedLevels | None:
    """Return the format called `name`; None if it is of another family.

    Raises:
      ValueError: there is no NormalFloat of so many bits.
    """
    match = re.fullmatch(r"nf([0-9]{1,2})(?:_([0-9]{1,2}))?", name)
    if match is None:
        return None
    bits = int(match[1])
    integer_bits = None if match[2] is None else int(match[2])
    if bits not in _BITS or integer_bits is not None and not bits < integer_bits <= 8:
        raise ValueError(
            f"number format {name!r}: NormalFloat has {_BITS[0]} to {_BITS[-1]} bits, and its"
            " integers more than these and at most 8"
        )
    return normal_float(name, bits, integer_bits)


@functools.cache
def normal_float(name: str, bits: int, integer_bits: int | None) -> FixedLevels:
    """Return the format of 2**bits values."""
    levels = np.sort(_quantiles(bits))
    levels /= levels.max()
    if integer_bits is not None:
        levels = np.unique(np.rint(levels * (2 ** (integer_bits - 1) - 1)))
    levels = levels.astype(np.float32)
    middles = (levels[:-1].astype(np.float64) + levels[1:]) / 2
    nearest = middles.astype(np.float32)
    thresholds = tuple(
        above(float(number)) if number <= middle else float(number)
        for number, middle in zip(nearest, middles, strict=True)
    )
    book = ScaledCodebook(tuple(levels.tolist()), thresholds, float(levels[-1]), name)
    return FixedLevels(name, bits, book, tuple(range(levels.size)))


def _quantiles(bits: int) -> np.ndarray:
    """Quantiles of the normal distribution, 0 among them; float64 [2**bits]."""
    from scipy.stats import norm

    half = 2 ** (bits - 1)
    positive = norm.ppf(np.linspace(_OFFSET, 0.5, half + 1)[:-1])
    negative = -norm.ppf(np.linspace(_OFFSET, 0.5, half)[:-1])
    return np.concatenate([positive, negative, [0.0]])
