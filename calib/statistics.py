"""Statistics of a tensor collected in calibration.

Extremes, moving averages and a histogram in NumPy; merging is exact.
"""

from dataclasses import dataclass

import numpy as np

from calib import binning

DECAY = 0.99  # of moving averages, where a method says nothing else


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts over bins of one power-of-two width (see `calib.binning` for the edges).

    Attributes:
        counts: int64 [bins]. Unsigned: of |x|, first bin starts at 0. Signed: ``counts[bins // 2]``
          starts at 0.
        bin_width: width of every bin, in the tensor's unit.
        signed: whether both signs are kept apart.
    """

    counts: np.ndarray
    bin_width: float
    signed: bool

    def __post_init__(self):
        counts = np.asarray(self.counts)
        if counts.ndim != 1 or counts.dtype != np.int64:
            raise ValueError(
                f"histogram counts must be int64 [bins], got {counts.dtype} {list(counts.shape)}"
            )
        if counts.size and counts.min() < 0:
            raise ValueError("histogram counts must not be negative")
        object.__setattr__(self, "counts", counts)
        binning.exponent_from_width(self.bin_width, binning.check_bins(counts.size), self.signed)

    @classmethod
    def of(cls, values: np.ndarray, *, signed: bool, bins: int = 2048) -> "Histogram":
        """Histogram of all finite ``values``."""
        values = np.asarray(values)
        amax = float(np.max(np.abs(values))) if values.size else 0.0
        exponent = binning.exponent_of(amax)
        return cls(
            binning.count(values, exponent, bins, signed),
            binning.bin_width(exponent, bins, signed),
            signed,
        )

    @property
    def exponent(self) -> int:
        """Exponent k of the span 2**k of one side of the histogram."""
        return binning.exponent_from_width(self.bin_width, self.counts.size, self.signed)

    @property
    def edges(self) -> np.ndarray:
        """Bin edges, float64 [bins + 1]."""
        return binning.edges(self.exponent, self.counts.size, self.signed)

    @property
    def centers(self) -> np.ndarray:
        """Bin centers, float64 [bins]."""
        edges = self.edges
        return (edges[:-1] + edges[1:]) / 2

    def coarsened(self, exponent: int) -> "Histogram":
        """The same histogram over bins that span ``2**exponent``, which must not be finer."""
        doublings = exponent - self.exponent
        if doublings < 0:
            raise ValueError("a histogram cannot be refined")
        counts = binning.coarsen(self.counts, doublings, self.signed)
        return Histogram(counts, binning.bin_width(exponent, counts.size, self.signed), self.signed)

    def folded(self) -> "Histogram":
        """Histogram of |x|: half as many bins of the same width when signed."""
        if not self.signed:
            return self
        half = self.counts.size // 2
        return Histogram(self.counts[half:] + self.counts[:half][::-1], self.bin_width, False)

    def rectified(self) -> "Histogram":
        """Histogram of max(x, 0).

        What an unsigned grid sees. Without signs kept it is that of |x|.
        """
        if not self.signed:
            return self
        half = self.counts.size // 2
        counts = self.counts[half:].copy()
        counts[0] += self.counts[:half].sum()
        return Histogram(counts, self.bin_width, False)

    def equals(self, other: "Histogram") -> bool:
        return (
            self.signed == other.signed
            and self.bin_width == other.bin_width
            and np.array_equal(self.counts, other.counts)
        )


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of one tensor over all calibration batches.

    Attributes:
        minimum: true smallest value, float32, shape () per tensor or (C,) per channel; +inf when
          nothing was seen.
        maximum: true largest value, same shape; -inf when nothing was seen.
        count: values seen (all of them, also when the histogram holds a sample).
        batches: batches seen that held at least one valid value.
        histogram: of the values, or of a weighted sample of them; None when only extremes were
          kept.
        ema_minimum: exponential moving average of the batch minima, or None.
        ema_maximum: exponential moving average of the batch maxima, or None.
        constant: the tensor is the same in every batch (a weight); merging it with itself changes
          nothing.
        ema_decay: weight of the old value in the moving averages; with 0 they are the last batch's
          extremes.
        rows: the first values as they are, float32 [rows, last axis], where a method reads them (of
          logits); or None.
        tokens: smallest and largest value of each of the first tokens, float32 [tokens, 2], where a
          method reads them; or None.
    """

    minimum: np.ndarray
    maximum: np.ndarray
    count: int
    batches: int
    histogram: Histogram | None = None
    ema_minimum: np.ndarray | None = None
    ema_maximum: np.ndarray | None = None
    constant: bool = False
    ema_decay: float = DECAY
    rows: np.ndarray | None = None
    tokens: np.ndarray | None = None

    def __post_init__(self):
        for name in ("minimum", "maximum", "ema_minimum", "ema_maximum"):
            value = getattr(self, name)
            if value is None:
                continue
            value = np.asarray(value, np.float32)
            if value.ndim > 1 or value.shape != np.shape(self.minimum):
                raise ValueError(
                    f"statistics: {name} has shape {list(value.shape)}, want () or (channels,)"
                    " alike"
                )
            object.__setattr__(self, name, value)
        if (self.ema_minimum is None) != (self.ema_maximum is None):
            raise ValueError("statistics: ema_minimum and ema_maximum go together")
        for name, wanted in (("rows", "[rows, size]"), ("tokens", "[tokens, 2]")):
            value = getattr(self, name)
            if value is not None and (value.ndim != 2 or value.dtype != np.float32):
                raise ValueError(
                    f"statistics: {name} must be float32 {wanted}, got {value.dtype}"
                    f" {list(value.shape)}"
                )
        if self.count < 0 or self.batches < 0:
            raise ValueError("statistics: count and batches must not be negative")

    @property
    def empty(self) -> bool:
        return self.count == 0

    @property
    def per_channel(self) -> bool:
        return self.minimum.ndim == 1

    def equals(self, other: "Statistics") -> bool:
        """Return whether two statistics are equal bit for bit."""
        return (
            (self.count, self.batches, self.constant)
            == (other.count, other.batches, other.constant)
            and self.ema_decay == other.ema_decay
            and all(
                _same(getattr(self, name), getattr(other, name))
                for name in ("minimum", "maximum", "ema_minimum", "ema_maximum", "rows", "tokens")
            )
            and (
                other.histogram is None
                if self.histogram is None
                else other.histogram is not None and self.histogram.equals(other.histogram)
            )
        )


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Merge the statistics of two sets of batches.

    Extremes, counts and histogram are exact: equal bit for bit to a single pass over all batches.
    The moving averages, which depend on the order of batches by nature, become the mean weighted by
    the number of batches; with a decay of 0 they are those of ``b``, whose batches come last.

    Raises:
        ValueError: when the shapes, bins, signs or decays of the two differ, or a constant tensor
          is not the same in both.
    """
    if a.minimum.shape != b.minimum.shape:
        raise ValueError(f"cannot merge: {_shape(a)} and {_shape(b)} statistics")
    if a.constant or b.constant:
        if not a.equals(b):
            raise ValueError(
                "cannot merge: the tensor is constant (a weight) and its values differ"
            )
        return a
    if a.empty or b.empty:
        return b if a.empty else a
    if a.ema_decay != b.ema_decay:
        raise ValueError(
            f"cannot merge: moving averages have decays of {a.ema_decay:g} and {b.ema_decay:g}; use"
            " one recipe"
        )
    weight = a.batches if a.ema_decay else 0
    return Statistics(
        minimum=np.minimum(a.minimum, b.minimum),
        maximum=np.maximum(a.maximum, b.maximum),
        count=a.count + b.count,
        batches=a.batches + b.batches,
        histogram=_merge_histograms(a.histogram, b.histogram),
        ema_minimum=_weighted(a.ema_minimum, weight, b.ema_minimum, b.batches),
        ema_maximum=_weighted(a.ema_maximum, weight, b.ema_maximum, b.batches),
        ema_decay=a.ema_decay,
        rows=_merge_rows(a.rows, b.rows),
        tokens=_merge_rows(a.tokens, b.tokens),
    )


def _merge_histograms(a: Histogram | None, b: Histogram | None) -> Histogram | None:
    if a is None and b is None:
        return None
    if a is None or b is None:
        raise ValueError("cannot merge: only one of the two holds a histogram")
    if a.signed != b.signed or a.counts.size != b.counts.size:
        kinds = [f"{h.counts.size} {'signed' if h.signed else 'unsigned'} bins" for h in (a, b)]
        raise ValueError(f"cannot merge histograms of {kinds[0]} and {kinds[1]}")
    exponent = max(a.exponent, b.exponent)
    a, b = a.coarsened(exponent), b.coarsened(exponent)
    return Histogram(a.counts + b.counts, a.bin_width, a.signed)


def _merge_rows(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    if a is None and b is None:
        return None
    if a is None or b is None or a.shape[1] != b.shape[1]:
        raise ValueError(
            "cannot merge: rows of values were kept of only one of the two, or are of another size"
        )
    return np.concatenate([a, b])


def _weighted(
    a: np.ndarray | None, weight_a: int, b: np.ndarray | None, weight_b: int
) -> np.ndarray | None:
    if a is None or b is None:
        return None
    mean = (np.float64(a) * weight_a + np.float64(b) * weight_b) / (weight_a + weight_b)
    return np.asarray(mean, np.float32)


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b))


def _shape(statistics: Statistics) -> str:
    return f"per-channel ({statistics.minimum.size})" if statistics.per_channel else "per-tensor"
