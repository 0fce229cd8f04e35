"""Range with the smallest mean squared quantization error of the histogram."""

import numpy as np

from calib import losses, range_search
from calib.codebook import Codebook
from calib.methods._common import Range, asymmetric, check_search, require_histogram, symmetric, used
from calib.statistics import Histogram, Statistics

NEEDS_HISTOGRAM = True
SEARCHES = ("bins", *range_search.SEARCHES)
_CHUNK = 32  # candidates scored at once: their errors, 32 x 2048 doubles, stay in the cache
_ROUNDS = 4


def check_options(start_bin: int, stride: int, search: str, candidates: int, margin: float) -> None:
    check_search("mse", start_bin, stride)
    if search not in SEARCHES:
        raise ValueError(f"range method 'mse': search must be one of {', '.join(SEARCHES)}, got {search!r}")
    range_search.check_options("mse", candidates, margin)
    for option, value, default, of in (
        ("start_bin", start_bin, 128, ("bins",)),
        ("stride", stride, 1, ("bins",)),
        ("candidates", candidates, 100, ("grid",)),
        ("margin", margin, 0.0, range_search.SEARCHES),
    ):
        if value != default and search not in of:
            raise ValueError(f"range method 'mse': {option} says nothing to search {search!r}, only to {' and '.join(of)}")


def estimate(
    stats: Statistics,
    codebook: Codebook,
    *,
    start_bin: int = 128,
    stride: int = 1,
    search: str = "bins",
    candidates: int = 100,
    margin: float = 0.0,
) -> Range:
    """Keeps the range with the least squared error among those that the search tries.

    Each bin's values are taken to sit at its centre. `bins` tries the centres of bins as the end of the range, the first of
    the best wins; on an asymmetric grid both ends are searched: first shrunk together, then in turn until neither moves. `grid`
    and `golden_section` are those of Qualcomm's transformer-quantization (`--act-opt-method`, `--weight-opt-method`), over
    the values of all batches, see `calib.range_search`; a margin of 0.5 is what it has. `bins` and `grid` find good ranges for any
    number of bits; golden section is the fastest with two ends, and can be far off below 4 bits.

    Args:
        stats: with a histogram.
        codebook: values of the number format.
        start_bin: of `bins`: first bin tried, counted from zero; lowered to an eighth of the bins in use if those are few.
        stride: of `bins`: step between the bins tried.
        search: `bins`, `grid` or `golden_section`.
        candidates: of `grid`: how many widths are tried.
        margin: of `grid` and `golden_section`: how far beyond the data a range may reach, in the unit of the data.
    """
    check_options(start_bin, stride, search, candidates, margin)
    histogram = require_histogram(stats, codebook, "mse")
    if search != "bins":
        filled = np.flatnonzero(histogram.counts)
        loss = losses.squared_error(histogram.centers[filled], histogram.counts[filled], codebook)
        ends = range_search.least_loss(
            loss, stats.minimum, stats.maximum, codebook, search=search, candidates=candidates, margin=margin
        )
        return np.asarray(ends[0], np.float32), np.asarray(ends[1], np.float32)
    if codebook.symmetric:
        _, last = used(histogram.counts)
        amax = histogram.centers[_candidates(last, start_bin, stride)]
        scores = _scores(histogram, codebook, *codebook.symmetric_range(amax))
        return symmetric(amax[np.argmin(scores)], stats, codebook)
    return asymmetric(*_search_both(histogram, codebook, start_bin, stride), stats)


def _candidates(last: int, start_bin: int, stride: int) -> np.ndarray:
    return np.arange(min(start_bin, last // 8), last, stride)


def _search_both(histogram: Histogram, codebook: Codebook, start_bin: int, stride: int) -> tuple[float, float]:
    """(lower, upper) by a joint shrink and then coordinate descent over the bin centres either side of zero."""
    zero = histogram.counts.size // 2
    first, last = used(histogram.counts)
    width = histogram.bin_width
    ends = []
    for bins in (zero - first, last - zero):  # bins in use below and above zero
        ends.append((_candidates(bins, start_bin, stride) + 0.5) * width if bins > 0 else np.zeros(1))
    lowers, uppers = -ends[0], ends[1]
    shrink = np.linspace(1 / 16, 1, 128)
    joint = np.argmin(_scores(histogram, codebook, lowers[-1] * shrink, uppers[-1] * shrink))
    lower, upper = lowers[-1] * shrink[joint], uppers[-1] * shrink[joint]
    best = np.inf
    for _ in range(_ROUNDS):
        scores = _scores(histogram, codebook, np.append(lowers, lower), np.full(lowers.size + 1, upper))
        lower = np.append(lowers, lower)[np.argmin(scores)]
        scores = _scores(histogram, codebook, np.full(uppers.size + 1, lower), np.append(uppers, upper))
        upper = np.append(uppers, upper)[np.argmin(scores)]
        if not scores.min() < best:
            break
        best = scores.min()
    return float(lower), float(upper)


def _scores(histogram: Histogram, codebook: Codebook, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Squared error, summed over the histogram, of every candidate range; float64 [candidates]."""
    filled = np.flatnonzero(histogram.counts)
    centers, counts = histogram.centers[filled], histogram.counts[filled].astype(np.float64)
    lower, upper = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    scores = np.empty(lower.size)
    for start in range(0, lower.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        error = codebook.quantize(centers[np.newaxis], lower[part, np.newaxis], upper[part, np.newaxis]) - centers
        scores[part] = np.square(error) @ counts
    return scores
