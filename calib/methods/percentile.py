"""Range that keeps a share of the values (NVIDIA's default for BERT: 99.99 %)."""

import numpy as np

from calib.codebook import Codebook
from calib.methods._common import Range, asymmetric, require_histogram, symmetric
from calib.statistics import Statistics

NEEDS_HISTOGRAM = True
EDGES = ("interpolated", "right", "left")


def check_options(percentile: float, edge: str) -> None:
    if isinstance(percentile, bool) or not isinstance(percentile, int | float) or not 0 <= percentile <= 100:
        raise ValueError(f"range method 'percentile': percentile must be a number from 0 to 100, got {percentile!r}")
    if edge not in EDGES:
        raise ValueError(f"range method 'percentile': edge must be one of {', '.join(EDGES)}, got {edge!r}")


def estimate(stats: Statistics, codebook: Codebook, *, percentile: float = 99.99, edge: str = "interpolated") -> Range:
    """Smallest range that keeps ``percentile`` percent of the values.

    A symmetric grid cuts the largest magnitudes, an asymmetric one half of the rest at each end.

    Args:
        stats: with a histogram.
        codebook: values of the number format.
        percentile: percent of the values kept, 0 to 100; 100 gives the true extremes (unless ``edge`` is "left").
        edge: where in the bin that completes the share the range ends: "interpolated" as if the bin were
            evenly filled, "right" its outer edge, "left" its inner edge as NVIDIA's calibrators do. The range never
            exceeds the true extremes.
    """
    check_options(percentile, edge)
    histogram = require_histogram(stats, codebook, "percentile")
    if codebook.symmetric:
        return symmetric(_position(histogram.counts, percentile / 100, edge) * histogram.bin_width, stats, codebook)
    share = 1 - (100 - percentile) / 200
    zero = histogram.counts.size // 2
    upper = (_position(histogram.counts, share, edge) - zero) * histogram.bin_width
    lower = (zero - _position(histogram.counts[::-1], share, edge)) * histogram.bin_width
    return asymmetric(lower, upper, stats)


def _position(counts: np.ndarray, share: float, edge: str) -> float:
    """Distance from the first edge, in bins, up to which ``share`` of the counts lie."""
    cumulative = np.cumsum(counts)
    # Rounded so that a share such as 0.9999 of 10,000 values is 9,999 of them in spite of binary fractions.
    target = min(round(share * float(cumulative[-1]), 6), float(cumulative[-1]))
    index = int(np.searchsorted(cumulative, target, side="left"))
    if edge == "left" or target == 0:
        return float(index)
    if edge == "right":
        return float(index + 1)
    return index + (target - float(cumulative[index] - counts[index])) / float(counts[index])
