"""Percentile method: range that contains a share of the values (NVIDIA's default for BERT: 99.99
%).
"""

from calib.codebook import Codebook, Range
from calib.methods._common import asymmetric, distribution, symmetric
from calib.statistics import Statistics

NEEDS_HISTOGRAM = True
EDGES = ("interpolated", "right", "left")


def check_options(percentile: float, edge: str) -> None:
    if (
        isinstance(percentile, bool)
        or not isinstance(percentile, int | float)
        or not 0 <= percentile <= 100
    ):
        raise ValueError(
            "range method 'percentile': percentile must be a number from 0 to 100, got"
            f" {percentile!r}"
        )
    if edge not in EDGES:
        raise ValueError(
            f"range method 'percentile': edge must be one of {', '.join(EDGES)}, got {edge!r}"
        )


def estimate(
    stats: Statistics, codebook: Codebook, *, percentile: float = 99.99, edge: str = "interpolated"
) -> Range:
    """Smallest range that contains ``percentile`` percent of the values.

    A symmetric grid cuts the largest magnitudes, an asymmetric one half of the rest at each end.

    Args:
        stats: with a histogram, or exact.
        codebook: values of the number format.
        percentile: percent of the values kept, 0 to 100; 100 gives the true extremes (unless
            ``edge`` is "left").
        edge: where in the bin that completes the share the range ends: "interpolated" as if the bin
            were evenly filled, "right" its outer edge, "left" its inner edge as NVIDIA's
            calibrators do. The range never exceeds the true extremes.
    """
    check_options(percentile, edge)
    values = distribution(stats, codebook, "percentile")
    if codebook.symmetric:
        return symmetric(
            values.magnitudes(codebook).quantile(percentile, edge, tails=1), stats, codebook
        )
    upper, lower = (side.quantile(percentile, edge, tails=2) for side in (values, values.negated()))
    return asymmetric(-lower, upper, stats)
