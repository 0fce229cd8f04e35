"""Shared functions of the range methods: input checks and result shapes."""

from collections.abc import Iterable

import numpy as np

from calib.codebook import Codebook, Range
from calib.distribution import Binned, Exact, ExactStatistics
from calib.errors import EmptyStatisticsError, MissingHistogramError
from calib.statistics import Histogram, Statistics


def require_data(stats: Statistics) -> None:
    if stats.empty:
        raise EmptyStatisticsError(
            "no value was seen, so no range can be estimated; calibrate with data that reach it"
        )


def distribution(stats: Statistics, codebook: Codebook, method: str) -> Binned | Exact:
    """Distribution that a method searches: exact values where available, else the histogram."""
    if isinstance(stats, ExactStatistics):
        return Exact(stats.values)
    return Binned(_histogram(stats, codebook, method))


def _histogram(stats: Statistics, codebook: Codebook, method: str) -> Histogram:
    """Histogram of magnitudes for symmetric codebooks, signed for asymmetric ones.

    Raises:
        EmptyStatisticsError: no value was seen.
        MissingHistogramError: there is none, or it has no signs and values below zero were seen.
    """
    require_data(stats)
    histogram = stats.histogram
    if histogram is None:
        raise MissingHistogramError(
            f"method {method!r} needs a histogram and only the extremes were kept; use method"
            " 'max', or per_channel_range on the values of a weight"
        )
    if not histogram.counts.any():
        raise EmptyStatisticsError(
            "the histogram is empty, so no range can be estimated; calibrate with more data"
        )
    if codebook.symmetric:
        return Binned(histogram).magnitudes(codebook).histogram
    if histogram.signed:
        return histogram
    if stats.minimum < 0:
        raise MissingHistogramError(
            f"method {method!r} on an asymmetric grid needs a histogram that keeps the signs;"
            " observe with signed=True"
        )
    counts = np.concatenate(
        [np.zeros_like(histogram.counts), histogram.counts]
    )  # non-negative data: |x| is x
    return Histogram(counts, histogram.bin_width, True)


def true_amax(stats: Statistics, codebook: Codebook) -> np.ndarray:
    """Largest magnitude that the codebook has to represent."""
    if codebook.unsigned:
        return np.maximum(stats.maximum, 0)
    return np.maximum(np.abs(stats.minimum), np.abs(stats.maximum))


def per_channel(values: Iterable, stats: Statistics) -> np.ndarray:
    """One float32 value for each channel, in the shape of the statistics' extremes."""
    return np.asarray(list(values), np.float32).reshape(stats.minimum.shape)


def symmetric(amax: float | np.ndarray, stats: Statistics, codebook: Codebook) -> Range:
    """Symmetric range of ``amax``, clipped to the data."""
    return codebook.symmetric_range(
        np.minimum(np.asarray(amax, np.float32), true_amax(stats, codebook))
    )


def asymmetric(lower: float | np.ndarray, upper: float | np.ndarray, stats: Statistics) -> Range:
    """Range [lower, upper], clipped to the data and extended to contain 0."""
    low = np.minimum(np.maximum(np.asarray(lower, np.float32), stats.minimum), 0)
    high = np.maximum(np.minimum(np.asarray(upper, np.float32), stats.maximum), 0)
    return low.astype(np.float32), high.astype(np.float32)


def check_search(method: str, start_bin: int, stride: int) -> None:
    for option, value, least in (("start_bin", start_bin, 0), ("stride", stride, 1)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(
                f"range method {method!r}: {option} must be an integer of at least {least}, got"
                f" {value!r}"
            )
