"""Distribution of a tensor as input of range methods: binned counts, or the values themselves.

Both have one interface, so that each method has one search: quantiles, (values, counts) for a loss,
candidate ends, and a histogram.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from calib.codebook import Codebook
from calib.statistics import Histogram, Statistics
from calib.trials import Trials

_BINS = 2048  # of the histogram of a channel whose values are known
_QUANTILES: dict[str, Any] = {"interpolated": "linear", "right": "inverted_cdf", "left": "lower"}
# Shares of the extremes that are tried as ends of a range, then offsets around the best of them.
_SHARES = np.linspace(1 / 16, 1, 61)
_FINE = np.linspace(-1, 1, 9)[1:-1] * (_SHARES[1] - _SHARES[0])


@dataclass(frozen=True, eq=False)
class ExactStatistics(Statistics):
    """Statistics of a constant tensor together with its values; never stored.

    Attributes:
        values: float32 [channels, n].
    """

    values: np.ndarray = field(kw_only=True)

    @classmethod
    def of(cls, values: np.ndarray) -> ExactStatistics:
        """Statistics of float32 values [channels, n]."""
        extremes = {"minimum": values.min(1), "maximum": values.max(1)}
        return cls(**extremes, count=values.size, batches=1, constant=True, values=values)


@dataclass(frozen=True, eq=False)
class Binned:
    """Binned counts of one tensor; all values of a bin are taken to lie at its center.

    Attributes:
        histogram: of magnitudes for a symmetric codebook, with signs for an asymmetric one.
    """

    histogram: Histogram

    def magnitudes(self, codebook: Codebook) -> Binned:
        """Distribution of the magnitudes that a symmetric ``codebook`` represents."""
        return Binned(self.histogram.rectified() if codebook.unsigned else self.histogram.folded())

    def negated(self) -> Binned:
        """Distribution of -x."""
        return Binned(Histogram(self.histogram.counts[::-1], self.histogram.bin_width, True))

    def quantile(self, percentile: float, edge: str, tails: int) -> np.ndarray:
        """Value below which a share of all values lies; float64 scalar.

        Args:
            percentile: percent of the values to keep.
            edge: where in the bin that completes the share: `interpolated`, `right` or `left`.
            tails: 1 to cut the rest off above, 2 to cut off half of it above (and half below).
        """
        share = percentile / 100 if tails == 1 else 1 - (100 - percentile) / 200
        zero = self.histogram.counts.size // 2 if self.histogram.signed else 0
        return np.asarray(
            (_position(self.histogram.counts, share, edge) - zero) * self.histogram.bin_width
        )

    def channels(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(values, counts) of the single channel, without empty bins."""
        filled = np.flatnonzero(self.histogram.counts)
        yield self.histogram.centers[filled], self.histogram.counts[filled]

    def histograms(self, codebook: Codebook) -> Iterator[Histogram]:
        """Histogram of the single channel."""
        yield self.histogram

    def points(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(values, counts), both [n], for a loss of all channels at once."""
        return next(self.channels())

    def trials(self, codebook: Codebook, start_bin: int, stride: int) -> Trials:
        """Candidate ends at bin centers on either side of zero.

        Args:
            codebook: which ends a range has.
            start_bin: first bin tried; lowered to an eighth of the bins in use if those are few.
            stride: step between bins.
        """
        filled = np.flatnonzero(self.histogram.counts)
        first, last, zero = filled[0], filled[-1] + 1, self.histogram.counts.size // 2
        extremes = np.asarray(-1.0), np.asarray(1.0)
        if codebook.symmetric:
            centers = self.histogram.centers[_tried(last, start_bin, stride)]
            return Trials(*extremes, centers, centers)
        lower, upper = (
            (
                (_tried(bins, start_bin, stride) + 0.5) * self.histogram.bin_width
                if bins > 0
                else np.zeros(1)
            )
            for bins in (zero - first, last - zero)
        )
        return Trials(
            *extremes, lower, upper, joint=np.linspace(1 / 16, 1, 128), rounds=4, keep=True
        )


@dataclass(frozen=True, eq=False)
class Exact:
    """Values of each channel of a constant tensor.

    Attributes:
        values: float32 [channels, n].
    """

    values: np.ndarray

    def magnitudes(self, codebook: Codebook) -> Exact:
        """Distribution of magnitudes, see `Binned.magnitudes`."""
        return Exact(np.maximum(self.values, 0) if codebook.unsigned else np.abs(self.values))

    def negated(self) -> Exact:
        """Distribution of -x."""
        return Exact(-self.values)

    def quantile(self, percentile: float, edge: str, tails: int) -> np.ndarray:
        """Quantile of each channel, [channels]; see `Binned.quantile`."""
        kept = percentile if tails == 1 else 100 - (100 - percentile) / 2
        return np.percentile(self.values, kept, axis=1, method=_QUANTILES[edge])

    def channels(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(values, counts) of each channel."""
        for row in self.values:
            yield row, np.ones(row.size)

    def histograms(self, codebook: Codebook) -> Iterator[Histogram]:
        """Histogram of each channel: of magnitudes if symmetric, else with signs."""
        for row in self.values:
            histogram = Histogram.of(row, signed=not codebook.symmetric, bins=_BINS)
            yield (
                Binned(histogram).magnitudes(codebook).histogram
                if codebook.symmetric
                else histogram
            )

    def points(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Values [channels, n]; each counts once."""
        return self.values, None

    def trials(self, codebook: Codebook, start_bin: int, stride: int) -> Trials:
        """Candidate ends at fractions of the extremes, then at finer fractions around the best;
        both options are for histograms only.
        """
        shares, fine = _SHARES.astype(np.float32), _FINE.astype(np.float32)
        if codebook.symmetric:
            amax = self.magnitudes(codebook).values.max(1)
            return Trials(-amax, amax, shares, shares, fine=fine)
        least, most = np.minimum(self.values.min(1), 0), np.maximum(self.values.max(1), 0)
        return Trials(least, most, shares, shares, joint=shares, fine=fine, rounds=2)


def _tried(last: int, start_bin: int, stride: int) -> np.ndarray:
    return np.arange(min(start_bin, last // 8), last, stride)


def _position(counts: np.ndarray, share: float, edge: str) -> float:
    """Distance from the first edge, in bins, below which ``share`` of the counts lie."""
    cumulative = np.cumsum(counts)
    # Rounded so that a share such as 0.9999 of 10,000 values is 9,999 of them in spite of binary
    # fractions.
    target = min(round(share * float(cumulative[-1]), 6), float(cumulative[-1]))
    index = int(np.searchsorted(cumulative, target, side="left"))
    if edge == "left" or target == 0:
        return float(index)
    if edge == "right":
        return float(index + 1)
    return index + (target - float(cumulative[index] - counts[index])) / float(counts[index])
