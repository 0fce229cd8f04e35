"""Range with the smallest mean squared quantization error of the histogram."""

import numpy as np

from calib.grid import Grid
from calib.methods._common import Range, asymmetric, check_search, require_histogram, symmetric, used
from calib.statistics import Histogram, Statistics

NEEDS_HISTOGRAM = True
_CHUNK = 32  # candidates scored at once: their errors, 32 x 2048 doubles, stay in the cache
_ROUNDS = 4


def check_options(start_bin: int, stride: int) -> None:
    check_search("mse", start_bin, stride)


def estimate(stats: Statistics, grid: Grid, *, start_bin: int = 128, stride: int = 1) -> Range:
    """Tries bin centres as the end of the range and keeps the one with the least squared error, the first on ties.

    Each bin's values are taken to sit at its centre. On an asymmetric grid both ends are searched: first shrunk
    together, then in turn until neither moves.

    Args:
        stats: with a histogram.
        grid: the integer grid.
        start_bin: first bin tried, counted from zero; lowered to an eighth of the bins in use if those are few.
        stride: step between the bins tried.
    """
    check_options(start_bin, stride)
    histogram = require_histogram(stats, grid, "mse")
    if not grid.two_sided:
        _, last = used(histogram.counts)
        amax = histogram.centers[_candidates(last, start_bin, stride)]
        scores = _scores(histogram, grid, *grid.interval(amax))
        return symmetric(amax[np.argmin(scores)], stats, grid)
    return asymmetric(*_search_both(histogram, grid, start_bin, stride), stats)


def _candidates(last: int, start_bin: int, stride: int) -> np.ndarray:
    return np.arange(min(start_bin, last // 8), last, stride)


def _search_both(histogram: Histogram, grid: Grid, start_bin: int, stride: int) -> tuple[float, float]:
    """(lower, upper) by a joint shrink and then coordinate descent over the bin centres either side of zero."""
    zero = histogram.counts.size // 2
    first, last = used(histogram.counts)
    width = histogram.bin_width
    ends = []
    for bins in (zero - first, last - zero):  # bins in use below and above zero
        ends.append((_candidates(bins, start_bin, stride) + 0.5) * width if bins > 0 else np.zeros(1))
    lowers, uppers = -ends[0], ends[1]
    shrink = np.linspace(1 / 16, 1, 128)
    joint = np.argmin(_scores(histogram, grid, lowers[-1] * shrink, uppers[-1] * shrink))
    lower, upper = lowers[-1] * shrink[joint], uppers[-1] * shrink[joint]
    best = np.inf
    for _ in range(_ROUNDS):
        scores = _scores(histogram, grid, np.append(lowers, lower), np.full(lowers.size + 1, upper))
        lower = np.append(lowers, lower)[np.argmin(scores)]
        scores = _scores(histogram, grid, np.full(uppers.size + 1, lower), np.append(uppers, upper))
        upper = np.append(uppers, upper)[np.argmin(scores)]
        if not scores.min() < best:
            break
        best = scores.min()
    return float(lower), float(upper)


def _scores(histogram: Histogram, grid: Grid, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Squared error, summed over the histogram, of every candidate range; float64 [candidates]."""
    filled = np.flatnonzero(histogram.counts)
    centers, counts = histogram.centers[filled], histogram.counts[filled].astype(np.float64)
    lower, upper = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    scores = np.empty(lower.size)
    for start in range(0, lower.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        error = grid.fake_quantize(centers[np.newaxis], lower[part, np.newaxis], upper[part, np.newaxis]) - centers
        scores[part] = np.square(error) @ counts
    return scores
