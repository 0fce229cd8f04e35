"""The histogram's value grid: bins whose width is always a power of two.

The span of one side of a histogram is the smallest ``2**exponent`` that reaches the largest
magnitude seen, divided in a power-of-two number of bins. A larger value doubles the width and
merges bins by pairs. Bins are closed on the side away from zero, ``(i w, (i + 1) w]`` (zero itself
falls in the first), because only then does the pair merge of a finer histogram equal, count for
count, the histogram taken with the coarser bins: a value on an edge, such as the maximum itself,
stays in the same half. So the result never depends on the order, size or split of the batches.
"""

import numpy as np

# Values up to 2**-100 count as zero: they all fall in the first bin. Keeps 2**(bits - exponent) a
# normal float32.
MIN_EXPONENT = -100
MAX_EXPONENT = 128
MIN_BINS = 8
MAX_BINS = 1 << 20


def check_bins(bins: int) -> int:
    """Return ``bins``; raise ValueError unless it is a power of two in [8, 2**20], so that bins
    merge in pairs.
    """
    if isinstance(bins, bool) or not isinstance(bins, int | np.integer):
        raise ValueError(f"number of histogram bins must be an integer, got {bins!r}")
    if not MIN_BINS <= bins <= MAX_BINS or bins & (bins - 1):
        raise ValueError(
            f"number of histogram bins must be a power of two from {MIN_BINS} to {MAX_BINS}, got"
            f" {bins}"
        )
    return int(bins)


def side_bins(bins: int, signed: bool) -> int:
    """Number of bins on one side of zero: all, or half for a signed histogram."""
    return bins // 2 if signed else bins


def exponent_of(amax: float) -> int:
    """Smallest k with ``amax <= 2**k``, clipped to [MIN_EXPONENT, MAX_EXPONENT]; exact, unlike
    ceil(log2(amax)).
    """
    mantissa, exponent = np.frexp(np.float64(amax))
    if mantissa <= 0.5:  # amax is itself a power of two, or zero
        exponent -= 1
    if amax == 0:
        return MIN_EXPONENT
    return int(np.clip(exponent, MIN_EXPONENT, MAX_EXPONENT))


def bin_width(exponent: int, bins: int, signed: bool) -> float:
    """Width of a bin when one side spans ``2**exponent``."""
    return float(np.ldexp(1.0, exponent) / side_bins(bins, signed))


def exponent_from_width(width: float, bins: int, signed: bool) -> int:
    """Inverse of `bin_width`; ValueError when the width is not a power of two."""
    mantissa, exponent = np.frexp(np.float64(width) * side_bins(bins, signed))
    if mantissa != 0.5:
        raise ValueError(f"histogram bin width must be a positive power of two, got {width!r}")
    return int(exponent) - 1


def edges(exponent: int, bins: int, signed: bool) -> np.ndarray:
    """Bin edges, float64 [bins + 1]."""
    first = -(bins // 2) if signed else 0
    return np.arange(first, first + bins + 1, dtype=np.float64) * bin_width(exponent, bins, signed)


def count(values: np.ndarray, exponent: int, bins: int, signed: bool) -> np.ndarray:
    """Histogram of all ``values`` (any shape, |value| <= 2**exponent); int64 [bins]."""
    values = np.asarray(values, np.float64).reshape(-1)
    index = np.ceil(np.abs(values) / bin_width(exponent, bins, signed)).astype(np.int64) - 1
    index = np.clip(index, 0, side_bins(bins, signed) - 1)
    if signed:
        index = np.where(values < 0, bins // 2 - 1 - index, bins // 2 + index)
    return np.bincount(index, minlength=bins).astype(np.int64)


def coarsen(counts: np.ndarray, doublings: int, signed: bool) -> np.ndarray:
    """Counts after the bin width was doubled ``doublings`` times.

    Each doubling merges pairs, outwards from zero.
    """
    if doublings == 0:
        return counts
    zero = counts.size // 2 if signed else 0
    # An arithmetic shift rounds towards minus infinity, which is the mirror image wanted left of
    # zero.
    target = ((np.arange(counts.size) - zero) >> min(doublings, 31)) + zero
    result = np.zeros_like(counts)
    np.add.at(result, target, counts)
    return result
