"""Entropy method: range with the least KL divergence of the quantized distribution (TensorRT)."""

import numpy as np

from calib.codebook import Codebook, Range
from calib.methods._common import asymmetric, check_search, distribution, per_channel, symmetric
from calib.statistics import Histogram, Statistics

NEEDS_HISTOGRAM = True
UNIFORM_ONLY = True  # groups of equally many bins stand for codes
# Divergences closer than this are the same up to rounding, and the wider range is taken.
_TIE = 1e-12


def check_options(start_bin: int, stride: int) -> None:
    check_search("entropy", start_bin, stride)


def estimate(
    stats: Statistics, codebook: Codebook, *, start_bin: int = 128, stride: int = 1
) -> Range:
    """Try bin edges as the end of the range and return the one with the least divergence, the last
    one on ties.

    For a candidate range, P is the histogram inside it with everything outside added to the end
    bins; Q merges the inside in as many equal groups as there are codes (of magnitudes, if
    symmetric) and spreads each group's count over its non-empty bins. The bin that holds exact
    zeros is replaced by its neighbour on a copy, as these need no resolution. With an asymmetric
    codebook the upper end is searched first, then the lower.

    Args:
        stats: with a histogram, or exact.
        codebook: values of the number format.
        start_bin: first edge tried, in bins from zero; lowered to the bins in use if those are
            fewer.
        stride: step between the edges tried.
    """
    check_options(start_bin, stride)
    values = distribution(stats, codebook, "entropy")
    ranges = [
        _estimate(histogram, codebook, start_bin, stride)
        for histogram in values.histograms(codebook)
    ]
    lower, upper = (per_channel(ends, stats) for ends in zip(*ranges, strict=True))
    return (
        symmetric(upper, stats, codebook) if codebook.symmetric else asymmetric(lower, upper, stats)
    )


def _estimate(
    histogram: Histogram, codebook: Codebook, start_bin: int, stride: int
) -> tuple[float, float]:
    """Ends of the range of one histogram; for a symmetric codebook only the upper one is used."""
    groups = int(codebook.quant_max) + 1 if codebook.symmetric else codebook.num_codes
    counts = histogram.counts.astype(np.float64)
    zero = 0 if codebook.symmetric else counts.size // 2
    counts[zero] = counts[zero + 1]
    if not counts.any():  # everything was in the bin of zero
        counts[zero] = 1
    filled = np.flatnonzero(counts)
    first, last = int(filled[0]), int(filled[-1]) + 1
    if codebook.symmetric:
        stops = _stops(last, start_bin, stride)
        best = stops[_last_smallest(divergences(counts, np.zeros_like(stops), stops, groups))]
        return 0.0, best * histogram.bin_width
    lower, upper = min(first, zero), max(last, zero)
    if upper > zero:
        stops = zero + _stops(upper - zero, start_bin, stride)
        upper = stops[
            _last_smallest(divergences(counts, np.full_like(stops, lower), stops, groups))
        ]
    if lower < zero:
        starts = zero - _stops(zero - lower, start_bin, stride)
        lower = starts[
            _last_smallest(divergences(counts, starts, np.full_like(starts, upper), groups))
        ]
    return (lower - zero) * histogram.bin_width, (upper - zero) * histogram.bin_width


def _stops(last: int, start_bin: int, stride: int) -> np.ndarray:
    stops = np.arange(max(min(start_bin, last), 1), last + 1, stride)
    # The whole range is always among the candidates: it loses nothing, so its divergence is finite.
    return stops if stops[-1] == last else np.append(stops, last)


def _last_smallest(scores: np.ndarray) -> int:
    return int(np.flatnonzero(scores <= scores.min() + _TIE)[-1])


def divergences(
    counts: np.ndarray, starts: np.ndarray, stops: np.ndarray, groups: int
) -> np.ndarray:
    """KL(P || Q) of every candidate range [start, stop) of bins, in nats; float64 [candidates].

    All candidates at once from prefix sums, because within a group Q is constant on its non-empty
    bins: the sum over bins of P log Q becomes one over groups of (count of P) log(count of Q /
    non-empty bins).

    Args:
        counts: float64 [bins].
        starts, stops: int64 [candidates], start < stop.
        groups: number of groups.
    """
    total = counts.sum()
    sums = np.concatenate([[0], np.cumsum(counts)])
    filled = np.concatenate([[0], np.cumsum(counts > 0)])
    self_terms = np.concatenate([[0], np.cumsum(_x_log_x(counts))])
    lengths = stops - starts
    bounds = starts[:, np.newaxis] + -(-np.arange(groups + 1) * lengths[:, np.newaxis] // groups)
    group_counts, group_filled = np.diff(sums[bounds]), np.diff(filled[bounds])
    with np.errstate(divide="ignore", invalid="ignore"):
        log_q = np.where(group_counts > 0, np.log(group_counts / group_filled), 0)
    below, above = sums[starts], total - sums[stops]
    p_log_p = self_terms[stops] - self_terms[starts]
    p_log_q = (group_counts * log_q).sum(1)
    infinite = sums[stops] == sums[starts]
    rows = np.arange(starts.size)
    added = np.zeros_like(below)
    for bins, outside in ((starts, below), (stops - 1, above)):
        here = counts[bins] + np.where(bins == starts, added, 0)
        p_log_p += _x_log_x(here + outside) - _x_log_x(here)
        p_log_q += outside * log_q[rows, (bins - starts) * groups // lengths]
        infinite |= (counts[bins] == 0) & (outside > 0)
        added = outside
    with np.errstate(divide="ignore", invalid="ignore"):
        result = (p_log_p - p_log_q) / total - np.log(total) + np.log(sums[stops] - sums[starts])
    return np.where(infinite, np.inf, result)


def _x_log_x(x: np.ndarray) -> np.ndarray:
    return x * np.log(np.where(x > 0, x, 1))
